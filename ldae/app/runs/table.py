"""Filter, sort and tabulate runs."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldae.app.resumption import IGNORED_ON_RESUME
from ldae.app.runs.records import RunRecord, number
from ldae.core.errors import ConfigError, as_written, did_you_mean
from linear_probe.results import markdown, title

CONDITION = re.compile(r"\s*(.+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
ABOUT = ("experiment", "state", "step", "epoch")  # what every run has beside its name
MOST_KEYS = 6  # config keys in the table of a terminal; the page has all


@dataclass(frozen=True)
class RunTable:
    """Runs with the columns that they fill.

    Attributes:
        records: the runs, in the order of the table.
        keys: config keys that are shown.
        metrics: titles of the last metrics.
        probes: titles of the probes' accuracies.
    """

    records: Sequence[RunRecord]
    keys: Sequence[str]
    metrics: Sequence[str]
    probes: Sequence[str]

    def cells(self, record: RunRecord) -> dict[str, tuple[str, Any]]:
        """Return {column: (text, value to sort by)} of a run, without its name."""
        metrics, probes = record.metrics, record.probes
        cells: dict[str, tuple[str, Any]] = {
            "progress": (progress(record), record.step),
            **{name: (f"{v:.2f}" if (v := probes.get(name)) is not None else "", v) for name in self.probes},
            **{name: (f"{v:.4g}" if (v := metrics.get(name)) is not None else "", v) for name in self.metrics},
            "experiment": (record.experiment, record.experiment),
        }
        return cells | {key: (value_text(v := record.config.get(key)), v) for key in self.keys}

    def best(self) -> dict[str, float]:
        """Return the highest accuracy of each probe's column with several."""
        columns = {name: [v for r in self.records if (v := r.probes.get(name)) is not None] for name in self.probes}
        return {name: max(values) for name, values in columns.items() if len(values) > 1}

    def text(self) -> str:
        """Return a line for each run, as Markdown; the best accuracy of a column is bold."""
        best, hidden = self.best(), self.keys[MOST_KEYS:]
        rows: list[list[str]] = []
        for record in self.records:
            shown = {name: cell for name, cell in self.cells(record).items() if name not in hidden}
            if not rows:
                rows.append(["run", *shown])
            texts = [f"**{t}**" if v is not None and best.get(name) == v else t for name, (t, v) in shown.items()]
            rows.append([record.name, *texts])
        note = f"\n\n{len(hidden)} more keys differ: {', '.join(hidden)}; keys=[...] chooses, compare=true shows all."
        return markdown(rows) + note * bool(hidden)

    def compared(self) -> str:
        """Return a column for each run and a row for everything that differs between them, as Markdown."""
        return markdown([["", *(record.name for record in self.records)], *self.differing()])

    def differing(self) -> list[list[str]]:
        """Return [name, text of each run] of every column whose texts differ."""
        columns = [self.cells(record) for record in self.records]
        rows = [[name, *(cells[name][0] for cells in columns)] for name in columns[0]]
        return [row for row in rows if len(set(row[1:])) > 1]


def build_table(records: Sequence[RunRecord], keys: Sequence[str]) -> RunTable:
    """Return the table of some runs.

    Args:
        records: at least one run.
        keys: config keys to show; those that differ between the runs if empty.

    Raises:
        ConfigError: no run has one of the keys.
    """
    known = dict.fromkeys(key for record in records for key in record.config)
    for key in keys:
        if key not in known:
            raise ConfigError("keys", key, f"is a key of no run here{did_you_mean(key, known)}")
    metrics = dict.fromkeys(name for record in records for name in record.metrics)
    probes = dict.fromkeys(name for record in records for name in record.probes)
    return RunTable(records, list(keys or differing_keys(records)), list(metrics), list(probes))


def differing_keys(records: Sequence[RunRecord]) -> list[str]:
    """Return the config keys whose values differ between the runs, without those that affect no result.

    Keys that all runs have come first: of two systems, the settings of one are none of the other's.
    """
    known = dict.fromkeys(key for record in records for key in record.config)
    ignored = (*IGNORED_ON_RESUME, "latents")
    differing = [
        key
        for key in known
        if len({repr(record.config.get(key)) for record in records}) > 1
        and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]
    return sorted(differing, key=lambda key: sum(key not in record.config for record in records))


def select(records: Sequence[RunRecord], where: str | None, sort: str | None) -> list[RunRecord]:
    """Return the runs that fulfil all conditions, sorted; runs without a value to sort by come last.

    Args:
        records: the runs.
        where: conditions NAME=VALUE, !=, <, <=, >, >= separated by commas; a text may hold * and ?. None for none.
        sort: name of a column or key, descending after a minus; None keeps the order.

    Raises:
        ConfigError: a condition cannot be read, or no run has its name.
    """
    kept = list(records)
    for text in filter(None, (where or "").split(",")):
        kept = [record for record in kept if _condition(text, records)(record)]
    if sort is None:
        return kept
    name = sort.removeprefix("-")
    _check_name("sort", name, records)
    pairs = [(value, record) for record in kept if (value := value_of(record, name)) is not None]
    is_numeric = all(number(value) is not None for value, _ in pairs)
    pairs.sort(key=lambda pair: pair[0] if is_numeric else str(pair[0]), reverse=sort.startswith("-"))
    return [record for _, record in pairs] + [record for record in kept if value_of(record, name) is None]


def _condition(text: str, records: Sequence[RunRecord]) -> Callable[[RunRecord], bool]:
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError("where", text, "is no condition; write e.g. where='linear>50,state=done'")
    name, sign, expected = match.groups()
    _check_name("where", name, records)
    if sign in COMPARED:
        try:
            limit = float(expected)
        except ValueError:
            raise ConfigError("where", text, f"compares with {expected!r}, which is no number") from None
        return lambda record: (v := number(value_of(record, name))) is not None and COMPARED[sign](v, limit)
    return lambda record: _equals(value_of(record, name), expected) is (sign == "=")


def _equals(value: Any, expected: str) -> bool:
    if number(value) is not None:
        try:
            return float(value) == float(expected)
        except ValueError:
            return False
    return fnmatch.fnmatchcase(value_text(value), expected)


def _check_name(key: str, name: str, records: Sequence[RunRecord]) -> None:
    names = {n: None for record in records for n in (*_values(record), *record.config)}
    if name not in names:
        columns = ", ".join(dict.fromkeys(n for record in records for n in _values(record)))
        hint = did_you_mean(name, names)
        raise ConfigError(key, name, f"is no column or config key of these runs; columns are: {columns}{hint}")


def value_of(record: RunRecord, name: str) -> Any:
    """Return the value of a column or a config key; None where the run has none."""
    values = _values(record)
    return values[name] if name in values else record.config.get(name)


def _values(record: RunRecord) -> dict[str, Any]:
    """Return {column: value}; protocols by their titles and by their names."""
    values: dict[str, Any] = {"run": record.name, **{name: getattr(record, name) for name in ABOUT}}
    values |= record.metrics
    probes = record.probes
    return values | {r.protocol: probes.get(title(r.protocol)) for r in record.results} | probes


def value_text(value: Any) -> str:
    """Return a value of a config as a command line has it; nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:g}" if isinstance(value, float) else as_written(value)


def progress(record: RunRecord) -> str:
    """Return state, steps and epochs of a run in words."""
    total, epoch = record.total, record.epoch
    epochs = "" if epoch is None else f", epoch {epoch:.3g}"
    if record.state == "done" or total is None:
        return f"{record.state}, step {record.step:,}{epochs}"
    return f"{record.state}, step {record.step:,} of {total:,} ({100 * record.step / total:.0f} %){epochs}"

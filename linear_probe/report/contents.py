"""Contents of a report: trials of grids and their baselines, checked so that a column holds one kind of figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from linear_probe.results import Result
from linear_probe.rows import Row

IMAGE_SIZE = "size"  # the axis of a grid over image sizes: the same images, hashed at each size


class Unreportable(ValueError):
    """Raised where results cannot stand in one report; the sentence names them and what would do."""


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        kind: `cell` of a grid; `baseline`, another trained network; `floor`, which costs no training.
        name: of the cell or the encoder.
        results: protocol -> what it found.
        row: the cell's; None for the others.
    """

    kind: str
    name: str
    results: Mapping[str, Result]
    row: Row | None = None

    @property
    def any_result(self) -> Result | None:
        """One of the results, for what they all share; None if there is none."""
        return next(iter(self.results.values()), None)


@dataclass(frozen=True)
class Contents:
    """All that a report shows.

    Attributes:
        title: of the page.
        entries: cells, then baselines, then floors.
        protocols: name -> what it is, in the order of the columns.
        curves: name of a noise schedule -> its share of signal gamma^2 / (gamma^2 + sigma^2), in [0, 1], over t.
    """

    title: str
    entries: Sequence[Entry]
    protocols: Mapping[str, str]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The cells' rows."""
        return [e.row for e in self.entries if e.row is not None]

    @property
    def beside(self) -> list[Entry]:
        """Baselines and floors."""
        return [e for e in self.entries if e.row is None]

    @property
    def results(self) -> list[Result]:
        """Every result of every entry."""
        return [result for entry in self.entries for result in entry.results.values()]

    def groups(self) -> dict[tuple[str, str], list[Entry]]:
        """(grid, budget) -> its cells: those that can be compared with each other."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.row is not None:
                found.setdefault((entry.row.grid, entry.row.budget), []).append(entry)
        return found


def gathered(
    title: str, rows: Sequence[Row], others: Sequence[Result], curves: Mapping[str, Sequence[float]]
) -> Contents:
    """The contents of a report.

    Raises:
        Unreportable: no results; two cells of one name; results that cannot stand in one table or one column.
    """
    trials = [Entry("cell", row.trial, _by_protocol(row.trial, row.results), row) for row in rows]
    entries = [*trials, *_beside(others)]
    results = [r for entry in entries for r in entry.results.values()]
    if not any(entry.results for entry in trials):
        raise Unreportable("no cell has a result; finish at least one cell of the grid first")
    _refuse_twins(rows)
    _refuse_mixtures(entries, results)
    return Contents(title, entries, {r.protocol: r.protocol_source for r in results}, curves)


def _by_protocol(name: str, results: Iterable[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for r in results:
        if not math.isfinite(r.accuracy):
            raise Unreportable(f"{name}: accuracy {r.accuracy} of protocol {r.protocol} is no number; probe it again")
        known = found.setdefault(r.protocol, r)
        if (known.accuracy, known.labels, known.split) != (r.accuracy, r.labels, r.split):
            raise Unreportable(
                f"{name} has two results of protocol {r.protocol} ({known.accuracy:.2f} on {known.split} with "
                f"{known.labels} labels, {r.accuracy:.2f} on {r.split} with {r.labels}); give one of each protocol"
            )
    return found


def _beside(others: Sequence[Result]) -> list[Entry]:
    """Baselines and floors, each once: a floor that several files repeat with the same figures is one entry."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in others:
        groups.setdefault((r.encoder, r.checkpoint, r.config), []).append(r)
    found: list[Entry] = []
    for (name, checkpoint, _), results in groups.items():
        entry = Entry("floor" if checkpoint == "none" else "baseline", name, _by_protocol(name, results))
        if not any(_repeats(entry, known) for known in found):
            found.append(entry)
    return sorted(_told_apart(found), key=lambda e: e.kind)  # baselines before floors


def _repeats(entry: Entry, known: Entry) -> bool:
    same = entry.name == known.name and entry.kind == known.kind == "floor"
    return same and all(
        p in known.results and known.results[p].accuracy == r.accuracy for p, r in entry.results.items()
    )


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    counts = Counter(e.name for e in entries)
    return [replace(e, name=f"{e.name} ({_mark(e)})") if counts[e.name] > 1 else e for e in entries]


def _mark(entry: Entry) -> str:
    result = entry.any_result
    assert result is not None
    return f"config {result.config[:8]}" if entry.kind == "floor" else result.checkpoint[:8]


def _refuse_twins(rows: Sequence[Row]) -> None:
    for (grid, budget, trial), count in Counter((r.grid, r.budget, r.trial) for r in rows).items():
        if count > 1:
            raise Unreportable(
                f"grid {grid}, budget {budget} has {count} rows named {trial}; give one row for each cell"
            )


def _refuse_mixtures(entries: Sequence[Entry], results: Sequence[Result]) -> None:
    _one("splits", results, lambda r: r.split)
    _one("fractions of labels", results, lambda r: r.labels)
    _one("data sets", results, lambda r: r.data)
    _one("numbers of images", results, lambda r: str(r.images))
    _one_fingerprint(entries)
    for name in dict.fromkeys(r.protocol for r in results):
        column = [r for r in results if r.protocol == name]
        _one(f"protocols of the name {name}", column, lambda r: r.protocol_source)
        _one(f"splits that {name}'s choices were made on", column, lambda r: r.selected_on)


def _one(what: str, results: Iterable[Result], of: Callable[[Result], str]) -> None:
    found = list(dict.fromkeys(map(of, results)))
    if len(found) > 1:
        raise Unreportable(f"{len(found)} {what} ({'; '.join(found)}) cannot stand in one table; report each apart")


def _one_fingerprint(entries: Sequence[Entry]) -> None:
    """The same images in all: one fingerprint, or one for each image size where a grid varies it."""
    by_size: dict[object, list[Result]] = {}
    for entry in entries:
        if entry.row is not None:
            by_size.setdefault(entry.row.axes.get(IMAGE_SIZE), []).extend(entry.results.values())
    for results in by_size.values():
        _one("data sets", results, lambda r: f"{r.data} {r.data_fingerprint[:12]}")
    known = {r.data_fingerprint for results in by_size.values() for r in results}
    for entry in entries:
        for r in entry.results.values():
            if r.data_fingerprint not in known:
                raise Unreportable(
                    f"{entry.name} was measured on other images ({r.data_fingerprint[:12]}) than the cells "
                    f"({', '.join(sorted(k[:12] for k in known))}); leave it out or probe it on these"
                )

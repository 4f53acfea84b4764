"""Contents of a report: trials of grids and their baselines, checked to be comparable."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from linear_probe.results import Result
from linear_probe.rows import Row

TRIAL, TRAINED, TRAINING_FREE = "trial", "trained baseline", "training-free baseline"  # kinds of entries
PAPER = "paper: ImageNet, ViT-L scale"  # title of published accuracies
IMAGE_SIZE = "size"  # the axis of a grid over image sizes: the same images, hashed at each size


class Unreportable(ValueError):
    """Raised where results cannot stand in one report; the sentence names them and what would do."""


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        kind: TRIAL, TRAINED or TRAINING_FREE.
        name: of the trial or the encoder.
        results: protocol -> its result.
        row: the trial's row; None for baselines.
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
        entries: trials, then trained baselines, then training-free ones.
        protocols: name -> description, in the order of the columns.
        schedules: name of a noise schedule -> its signal fraction gamma^2 / (gamma^2 + sigma^2), in [0, 1], over t.
    """

    title: str
    entries: Sequence[Entry]
    protocols: Mapping[str, str]
    schedules: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The rows of the trials."""
        return [e.row for e in self.entries if e.row is not None]

    @property
    def baselines(self) -> list[Entry]:
        """The trained and the training-free baselines."""
        return [e for e in self.entries if e.row is None]

    @property
    def results(self) -> list[Result]:
        """Every result of every entry."""
        return [result for entry in self.entries for result in entry.results.values()]

    def groups(self) -> dict[tuple[str, str], list[Entry]]:
        """Return {(grid, budget): its trials}: those that can be compared with each other."""
        trials: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.row is not None:
                trials.setdefault((entry.row.grid, entry.row.budget), []).append(entry)
        return trials


def build_contents(
    title: str, rows: Sequence[Row], others: Sequence[Result], schedules: Mapping[str, Sequence[float]]
) -> Contents:
    """Check results and arrange them for a report.

    Args:
        title: of the page.
        rows: trials of one grid or of several.
        others: results of baselines.
        schedules: name -> signal fraction at t = 0..T-1, in [0, 1].

    Raises:
        Unreportable: there is no result; two trials have one name; results cannot stand in one table or one column.
    """
    trials = [Entry(TRIAL, row.trial, _by_protocol(row.trial, row.results), row) for row in rows]
    entries = [*trials, *_baselines(others)]
    results = [r for entry in entries for r in entry.results.values()]
    if not any(entry.results for entry in trials):
        raise Unreportable("no trial has a result; finish at least one trial of the grid first")
    _refuse_duplicates(rows)
    _refuse_mixed(entries, results)
    return Contents(title, entries, {r.protocol: r.protocol_source for r in results}, schedules)


def _by_protocol(name: str, results: Iterable[Result]) -> dict[str, Result]:
    by_protocol: dict[str, Result] = {}
    for r in results:
        if not math.isfinite(r.accuracy):
            raise Unreportable(f"{name}: accuracy {r.accuracy} of protocol {r.protocol} is no number; probe it again")
        first = by_protocol.setdefault(r.protocol, r)
        if (first.accuracy, first.labels, first.split) != (r.accuracy, r.labels, r.split):
            raise Unreportable(
                f"{name} has two results of protocol {r.protocol} ({first.accuracy:.2f} on {first.split} with "
                f"{first.labels} labels, {r.accuracy:.2f} on {r.split} with {r.labels}); give one of each protocol"
            )
    return by_protocol


def _baselines(others: Sequence[Result]) -> list[Entry]:
    """Return each baseline once: a training-free one that several files repeat with equal accuracies is one entry."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in others:
        groups.setdefault((r.encoder, r.checkpoint, r.config), []).append(r)
    baselines: list[Entry] = []
    for (name, checkpoint, _), results in groups.items():
        kind = TRAINING_FREE if checkpoint == "none" else TRAINED
        entry = Entry(kind, name, _by_protocol(name, results))
        if not any(_repeats(entry, earlier) for earlier in baselines):
            baselines.append(entry)
    return sorted(_with_unique_names(baselines), key=lambda e: e.kind != TRAINED)


def _repeats(entry: Entry, earlier: Entry) -> bool:
    same = entry.name == earlier.name and entry.kind == earlier.kind == TRAINING_FREE
    return same and all(
        p in earlier.results and earlier.results[p].accuracy == r.accuracy for p, r in entry.results.items()
    )


def _with_unique_names(entries: Sequence[Entry]) -> list[Entry]:
    counts = Counter(e.name for e in entries)
    return [replace(e, name=f"{e.name} ({_hash(e)})") if counts[e.name] > 1 else e for e in entries]


def _hash(entry: Entry) -> str:
    result = entry.any_result
    assert result is not None
    return f"config {result.config[:8]}" if entry.kind == TRAINING_FREE else result.checkpoint[:8]


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    for (grid, budget, trial), count in Counter((r.grid, r.budget, r.trial) for r in rows).items():
        if count > 1:
            raise Unreportable(
                f"grid {grid}, budget {budget} has {count} rows named {trial}; give one row for each trial"
            )


def _refuse_mixed(entries: Sequence[Entry], results: Sequence[Result]) -> None:
    _require_one("splits", results, lambda r: r.split)
    _require_one("fractions of labels", results, lambda r: r.labels)
    _require_one("data sets", results, lambda r: r.data)
    _require_one("numbers of images", results, lambda r: str(r.images))
    _require_one_fingerprint(entries)
    for name in dict.fromkeys(r.protocol for r in results):
        column = [r for r in results if r.protocol == name]
        _require_one(f"protocols of the name {name}", column, lambda r: r.protocol_source)
        _require_one(f"splits that {name}'s choices were made on", column, lambda r: r.selected_on)


def _require_one(what: str, results: Iterable[Result], of: Callable[[Result], str]) -> None:
    values = list(dict.fromkeys(map(of, results)))
    if len(values) > 1:
        raise Unreportable(f"{len(values)} {what} ({'; '.join(values)}) cannot stand in one table; report each apart")


def _require_one_fingerprint(entries: Sequence[Entry]) -> None:
    """Require the same images of all: one fingerprint, or one for each image size where a grid varies it."""
    by_size: dict[object, list[Result]] = {}
    for entry in entries:
        if entry.row is not None:
            by_size.setdefault(entry.row.axes.get(IMAGE_SIZE), []).extend(entry.results.values())
    for results in by_size.values():
        _require_one("data sets", results, lambda r: f"{r.data} {r.data_fingerprint[:12]}")
    fingerprints = {r.data_fingerprint for results in by_size.values() for r in results}
    for entry in entries:
        for r in entry.results.values():
            if r.data_fingerprint not in fingerprints:
                raise Unreportable(
                    f"{entry.name} was measured on other images ({r.data_fingerprint[:12]}) than the trials "
                    f"({', '.join(sorted(f[:12] for f in fingerprints))}); leave it out or probe it on these"
                )


def chosen_on(result: Result) -> str:
    """Return the images that layer, noise level and settings were selected on, in words."""
    return "the hold-out" if result.selected_on == "holdout" else result.selected_on

"""Rank correlation of measures without labels with accuracies, over the result lines below a folder.

    python -m linear_probe.label_free results/

Lines have measures where `ldae probe` or a suite of `ldae benchmark` measured them (geometry=true). Only encoders of
the same data, split, labels and protocol are compared.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linear_probe.agreement import Agreement, interval, rank_correlation
from linear_probe.results import Result, markdown, title, unsealed

FEWEST = 5  # encoders; the interval of fewer says nothing
LOWER_IS_BETTER = ("alignment", "uniformity")


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a measure with an accuracy over encoders.

    Attributes:
        data, split, labels, protocol: of the accuracies.
        measure: name of the measure; the sign of those that are better when lower is turned.
        agreement: the correlation with its bootstrap interval over the encoders.
    """

    data: str
    split: str
    labels: str
    protocol: str
    measure: str
    agreement: Agreement


def results_below(folder: Path) -> Iterator[Result]:
    """Yield the result lines with measures below a folder; other files and lines are passed over."""
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = unsealed(line)
                result = Result(**value)
            except (ValueError, TypeError):
                continue  # of another kind, or damaged
            if result.geometry:
                yield result


def correlations(results: Sequence[Result]) -> list[Correlation]:
    """Return the rank correlation of each measure with each accuracy, over encoders on the same images.

    Of several lines of the same encoder, checkpoint, features and seed the first counts. Groups of fewer than five
    encoders, and those in which one side is constant, are left out.
    """
    groups: dict[tuple[str, str, str, str, str], dict[tuple[object, ...], Result]] = {}
    for r in results:
        group = (r.data, r.data_fingerprint, r.split, r.labels, r.protocol)
        encoder = (r.encoder, r.checkpoint, r.config, r.selected.get("features"), r.seed)
        groups.setdefault(group, {}).setdefault(encoder, r)
    return [
        Correlation(data, split, labels, protocol, measure, agreement)
        for (data, _, split, labels, protocol), members in groups.items()
        for measure in dict.fromkeys(name for r in members.values() for name in r.geometry)
        if (agreement := _agreement(list(members.values()), measure)) is not None
    ]


def _agreement(results: Sequence[Result], measure: str) -> Agreement | None:
    sign = -1 if measure in LOWER_IS_BETTER else 1
    pairs = np.array([(sign * r.geometry[measure], r.accuracy) for r in results if measure in r.geometry])
    if len(pairs) < FEWEST or any(len(set(side)) == 1 for side in pairs.T):
        return None
    rho = rank_correlation(pairs)
    return Agreement(rho, len(pairs), *interval(pairs)) if math.isfinite(rho) else None


def table(every: Sequence[Correlation]) -> str:
    """Return a Markdown table of correlations."""
    rows = [["accuracy", "measure", "encoders", "Spearman's rho", "95 % interval"]]
    for c in every:
        labels = "" if c.labels == "all" else f", {c.labels}"
        measure = f"-{c.measure}" if c.measure in LOWER_IS_BETTER else c.measure
        of = c.agreement
        low, high = (f"{round(x, 2) + 0:.2f}" for x in (of.low, of.high))
        accuracy = f"{c.data}: {title(c.protocol)}, {c.split}{labels}"
        rows.append([accuracy, measure, str(of.count), of.estimate, f"{low} to {high}"])
    return markdown(rows)


def main(argv: Sequence[str]) -> int:
    """Print the table of a folder, and return the exit code."""
    if len(argv) != 1:
        print("usage: python -m linear_probe.label_free FOLDER", file=sys.stderr)
        return 2
    folder = Path(argv[0]).expanduser()
    if not folder.is_dir():
        print(f"error: {folder} is no folder; give one with result lines (*.jsonl)", file=sys.stderr)
        return 65
    results = list(results_below(folder))
    if not (rows := correlations(results)):
        print(
            f"{folder} has {len(results)} result lines with measures without labels, in no group {FEWEST} encoders of "
            "the same data and protocol; measure more by `ldae probe geometry=true`"
        )
        return 0
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

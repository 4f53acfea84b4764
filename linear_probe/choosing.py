"""The one choice that every figure rests on: cell and setting, by trials that never see the test split."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from linear_probe.features import Cell
from linear_probe.protocols import Choice, Protocol
from linear_probe.sources import Source
from linear_probe.subsets import Plan


@dataclass(frozen=True)
class Chosen:
    """A cell, the protocol's setting there, and what every cell had where the choice was made.

    Attributes:
        cell, choice: the best.
        among: accuracy of each cell under its best setting, percent.
    """

    cell: Cell
    choice: Choice
    among: Mapping[Cell, float]


def choose(protocol: Protocol, source: Source, plan: Plan, classes: int, seed: int) -> Chosen:
    """The best cell and setting by a plan's trials; each trial weighs as many images as it was scored on."""
    trials = [protocol.tried_at(source, fit, held, classes, seed) for fit, held in plan.trials]
    sizes = [source.count([held]) for _, held in plan.trials]
    best = {cell: max(_averaged([t[cell] for t in trials], sizes), key=lambda c: c.accuracy) for cell in source.cells}
    cell = max(best, key=lambda c: best[c].accuracy)
    return Chosen(cell, best[cell], {c: choice.accuracy for c, choice in best.items()})


def _averaged(trials: Sequence[Sequence[Choice]], sizes: Sequence[int]) -> list[Choice]:
    """Each setting's accuracy over all trials."""
    shares = [size / sum(sizes) for size in sizes]
    return [
        Choice(same[0].setting, sum(c.accuracy * share for c, share in zip(same, shares, strict=True)))
        for same in zip(*trials, strict=True)
    ]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; no deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

"""Whether rows stand in the same order here and in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from linear_probe.rows import Row

FEWEST = 3  # cells below which an order says nothing


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of our accuracies with the paper's.

    Attributes:
        grid, protocol: whose accuracies; protocols are never mixed.
        correlation: in [-1, 1]; 1 for the same order. Not a number where all of one side are equal.
        cells: how many have both.
    """

    grid: str
    protocol: str
    correlation: float
    cells: int

    def __str__(self) -> str:
        told = f"Spearman's rank correlation with the paper's accuracies: {self.correlation:.2f}"
        return f"{self.grid}, {self.protocol}: {told} ({self.cells} cells)"


def agreements(rows: Sequence[Row]) -> list[Agreement]:
    """One for each grid and protocol that has at least three rows with an accuracy of the paper's."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for result in row.results if row.paper is not None else ():
            pairs.setdefault((row.grid, result.protocol), []).append((row.paper or 0.0, result.accuracy))
    return [
        Agreement(grid, protocol, float(spearmanr(*zip(*found, strict=True)).statistic), len(found))
        for (grid, protocol), found in pairs.items()
        if len(found) >= FEWEST
    ]

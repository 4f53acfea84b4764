"""Whether rows stand in the same order here and in the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from linear_probe.results import title
from linear_probe.rows import Row

FEWEST = 3  # cells below which an order says nothing


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of our accuracies with the paper's.

    Attributes:
        grid, protocol: whose accuracies; protocols are never mixed.
        correlation: in [-1, 1]; 1 for the same order.
        cells: how many have both.
    """

    grid: str
    protocol: str
    correlation: float
    cells: int

    def __str__(self) -> str:
        told = f"Spearman's rank correlation with the paper's accuracies: {self.correlation:.2f}"
        return f"{self.grid}, {title(self.protocol)}: {told} ({self.cells} cells)"


def agreements(rows: Sequence[Row]) -> list[Agreement]:
    """One for each grid and protocol that has at least three rows with an accuracy of the paper's."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for result in row.results if row.paper is not None else ():
            pairs.setdefault((row.grid, result.protocol), []).append((row.paper or 0.0, result.accuracy))
    known = {key: (rank_correlation(found), len(found)) for key, found in pairs.items()}
    return [Agreement(*key, rho, count) for key, (rho, count) in known.items() if rho is not None]


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, in [-1, 1]; None for fewer than three pairs, or where one side is the same number throughout."""
    if len(pairs) < FEWEST or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return rho if math.isfinite(rho) else None

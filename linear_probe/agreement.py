"""Rank correlation between our accuracies and the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from linear_probe.rows import Row

FEWEST = 3  # rows; an order of fewer means nothing


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of our accuracies with the paper's.

    Attributes:
        rho: in [-1, 1]; 1 for the same order.
        count: rows that have both accuracies.
    """

    rho: float
    count: int

    def __str__(self) -> str:
        """Return rho with two digits, never a zero with a sign."""
        return f"{round(self.rho, 2) + 0:.2f}"


def agreement(rows: Sequence[Row], protocol: str) -> Agreement | None:
    """Return the rank correlation over the rows that have an accuracy under `protocol` and one of the paper's.

    Returns:
        None for fewer than three such rows, or where one side is constant.
    """
    results = [(result, row.paper) for row in rows for result in row.results if result.protocol == protocol]
    pairs = [(result.accuracy, paper) for result, paper in results if paper is not None]
    if len(pairs) < FEWEST or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return Agreement(rho, len(pairs)) if math.isfinite(rho) else None


def agreements(rows: Sequence[Row]) -> dict[tuple[str, str], Agreement]:
    """Return {(grid, protocol): rank correlation}, for those that have one; grids and protocols are never mixed."""
    keys = dict.fromkeys((row.grid, result.protocol) for row in rows for result in row.results)
    every = {(g, p): agreement([row for row in rows if row.grid == g], p) for g, p in keys}
    return {key: one for key, one in every.items() if one is not None}

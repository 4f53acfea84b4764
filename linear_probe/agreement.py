"""Rank correlation between our accuracies and the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linear_probe.rows import Row

FEWEST = 3  # rows; an order of fewer means nothing
RESAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of our accuracies with the paper's.

    Attributes:
        rho: in [-1, 1]; 1 for the same order.
        count: rows that have both accuracies.
        low, high: 95 % interval of rho, by resampling the rows (percentile bootstrap).
    """

    rho: float
    count: int
    low: float
    high: float

    @property
    def estimate(self) -> str:
        """Return rho with two digits, never a zero with a sign."""
        return _two_digits(self.rho)

    @property
    def range(self) -> str:
        """Return the interval with two digits."""
        return f"95 % interval {_two_digits(self.low)} to {_two_digits(self.high)}"

    def __str__(self) -> str:
        return f"{self.estimate} ({self.range})"


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"


def agreement(rows: Sequence[Row], protocol: str) -> Agreement | None:
    """Return the rank correlation over the rows that have an accuracy under `protocol` and one of the paper's.

    Returns:
        None for fewer than three such rows, or where one side is constant.
    """
    results = [(result, row.paper) for row in rows for result in row.results if result.protocol == protocol]
    pairs = [(result.accuracy, paper) for result, paper in results if paper is not None]
    if len(pairs) < FEWEST or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    rho = rank_correlation(np.array(pairs))
    return Agreement(rho, len(pairs), *interval(np.array(pairs))) if math.isfinite(rho) else None


def rank_correlation(pairs: np.ndarray) -> float:
    """Return Spearman's rank correlation of the columns of (N, 2)."""
    from scipy.stats import spearmanr  # the module takes a second

    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def interval(pairs: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of Spearman's rank correlation.

    Args:
        pairs: (N, 2) accuracies, ours and the paper's.
        seed: of the resampling; the same interval in every call.
    """
    from scipy.stats import rankdata  # the module takes a second

    rows = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    ours, papers = (rankdata(pairs[rows, side], axis=1) for side in (0, 1))  # (resamples, N)
    ours, papers = (ranks - ranks.mean(1, keepdims=True) for ranks in (ours, papers))
    norms = np.sqrt((ours**2).sum(1) * (papers**2).sum(1))
    rhos = ((ours * papers).sum(1) / np.where(norms > 0, norms, np.nan))[norms > 0]  # a constant side has no order
    low, high = np.percentile(rhos, [2.5, 97.5])
    return float(low), float(high)


def agreements(rows: Sequence[Row]) -> dict[tuple[str, str], Agreement]:
    """Return {(grid, protocol): rank correlation}, for those that have one; grids and protocols are never mixed."""
    keys = dict.fromkeys((row.grid, result.protocol) for row in rows for result in row.results)
    every = {(g, p): agreement([row for row in rows if row.grid == g], p) for g, p in keys}
    return {key: one for key, one in every.items() if one is not None}

"""Whether the order of the cells is the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.stats import spearmanr

from linear_probe.report.contents import Entry


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation `rho`, in [-1, 1], over `count` cells."""

    rho: float
    count: int

    def __str__(self) -> str:
        """Two digits; never a zero with a sign."""
        return f"{round(self.rho, 2) + 0:.2f}"


def agreement(cells: Iterable[Entry], protocol: str) -> Agreement | None:
    """Of our accuracies under `protocol` with the paper's, over the cells that have both.

    Returns:
        None for fewer than 3 such cells, or where one side is the same number throughout.
    """
    pairs = [(e.results[protocol].accuracy, e.row.paper) for e in cells if e.row and protocol in e.results]
    known = [(ours, paper) for ours, paper in pairs if paper is not None]
    if len(known) < 3 or any(len(set(side)) == 1 for side in zip(*known, strict=True)):
        return None
    rho = float(spearmanr(*zip(*known, strict=True)).statistic)
    return Agreement(rho, len(known)) if math.isfinite(rho) else None

"""Whether the order of the cells is the paper's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from linear_probe.agreement import rank_correlation
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
    rho = rank_correlation(known)
    return None if rho is None else Agreement(rho, len(known))

"""Precision and recall of a set of images (arXiv 1904.06991)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # distances are worked out for so many rows at a time


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """How much of what is generated could be real, and how much of what is real is generated (Sec. 2 there).

    A set's manifold is the union of balls about its points, each as large as the distance to the point's k-th nearest
    neighbour in the set. Precision is the share of generated points on the real manifold, recall that of real points
    on the generated one.

    Args:
        real, generated: features (N, D) and (M, D), more than k of each.

    Raises:
        ValueError: a set has too few points.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"more than k={k} points of each set are needed")
    real, generated = real.double(), generated.double()
    return _share_within(generated, real, k), _share_within(real, generated, k)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    rows = centres.split(ROWS)
    radii = torch.cat([torch.cdist(part, centres).kthvalue(k + 1, dim=1).values for part in rows])  # itself is nearest
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())

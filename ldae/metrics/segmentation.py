"""How well figures were found: overlap and boundary, for each image (as SegDiff has it, arXiv 2112.00390)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

RADII = (1, 2, 3, 4, 5)


def vote(runs: Tensor) -> Tensor:
    """Several answers made one mask: 1 where their mean exceeds 1/2 (not where most of them do).

    Args:
        runs: (K, B, 1, H, W) in [0, 1], clipped: a run that overshoots has no more than one voice.

    Returns:
        (B, 1, H, W), 0 or 1.
    """
    return (runs.mean(0) > 0.5).float()


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of the figures, for each image; 1 where both are empty.

    Args:
        predicted, truth: masks (B, 1, H, W), above 1/2 is figure.

    Returns:
        (B,) float64.
    """
    a, b = (_figures(x).flatten(1) for x in (predicted, truth))
    return _share((a & b).sum(1), (a | b).sum(1))


def dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|), the F1 of the figure's pixels, for each image; 1 where both are empty.

    Args, Returns: as iou.
    """
    a, b = (_figures(x).flatten(1) for x in (predicted, truth))
    return _share(2 * (a & b).sum(1), a.sum(1) + b.sum(1))


def boundary_f(predicted: Tensor, truth: Tensor, radii: Sequence[int] = RADII) -> Tensor:
    """How well boundaries agree up to r pixels, for each image, mean over `radii`.

    F of precision (the share of the predicted boundary within r of the true one) and recall (the other way round);
    within r: where the other boundary, dilated by a disk of radius r, lies. A boundary is the figure's pixels with a
    ground pixel beside, above or below; the image's border is none. 0 where one mask has a boundary and the other
    none, 1 for equal masks.

    Args:
        predicted, truth: masks (B, 1, H, W), above 1/2 is figure.

    Returns:
        (B,) float64.
    """
    pairs = zip(_figures(predicted).cpu().numpy(), _figures(truth).cpu().numpy(), strict=True)
    return torch.tensor([_boundary_f(a[0], b[0], radii) for a, b in pairs], dtype=torch.float64)


def _boundary_f(a: np.ndarray, b: np.ndarray, radii: Sequence[int]) -> float:
    edge_a, edge_b = _edge(a), _edge(b)
    if not (edge_a.any() and edge_b.any()):
        return float(np.array_equal(a, b))
    to_b, to_a = distance_transform_edt(~edge_b)[edge_a], distance_transform_edt(~edge_a)[edge_b]
    return float(np.mean([_f(np.mean(to_b <= r), np.mean(to_a <= r)) for r in radii]))


def _f(precision: np.floating, recall: np.floating) -> float:
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def _edge(figure: np.ndarray) -> np.ndarray:
    """The figure's pixels, (H, W), of whose four neighbours one is ground."""
    around = np.pad(figure, 1, mode="edge")
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return figure & ~inner


def _figures(masks: Tensor) -> Tensor:
    return masks > 0.5


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.double() / whole.clamp(min=1), 1.0)

"""Metrics of binary segmentation per image: IoU, Dice and boundary F-score (as in SegDiff, arXiv 2112.00390)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

RADII = (1, 2, 3, 4, 5)  # pixels


def vote(runs: Tensor) -> Tensor:
    """Return one mask from several predictions: 1 where their mean, not their majority, exceeds 1/2.

    Args:
        runs: (K, B, 1, H, W) in [0, 1], clipped.

    Returns:
        (B, 1, H, W), 0 or 1.
    """
    return (runs.mean(0) > 0.5).float()


def iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of the foregrounds for each image; 1 if both are empty.

    Args:
        predicted, truth: masks (B, 1, H, W), foreground above 1/2.

    Returns:
        (B,) float64.
    """
    a, b = (_foreground(x).flatten(1) for x in (predicted, truth))
    return _ratio((a & b).sum(1), (a | b).sum(1))


def dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return 2 |A and B| / (|A| + |B|), the F1 score of foreground pixels, for each image; 1 if both are empty.

    Args, Returns: as iou.
    """
    a, b = (_foreground(x).flatten(1) for x in (predicted, truth))
    return _ratio(2 * (a & b).sum(1), a.sum(1) + b.sum(1))


def boundary_f(predicted: Tensor, truth: Tensor, radii: Sequence[int] = RADII) -> Tensor:
    """Return the boundary F-score with a tolerance of r pixels for each image, averaged over `radii`.

    Precision is the fraction of the predicted boundary within a distance r of the true one, recall the reverse. A
    boundary consists of the foreground pixels with a background pixel among their four neighbours; pixels beyond the
    border of the image do not count. The score is 0 if only one mask has a boundary, and 1 for equal masks.

    Args:
        predicted, truth: masks (B, 1, H, W), foreground above 1/2.
        radii: tolerances in pixels.

    Returns:
        (B,) float64.
    """
    pairs = zip(_foreground(predicted).cpu().numpy(), _foreground(truth).cpu().numpy(), strict=True)
    return torch.tensor([_boundary_f(a[0], b[0], radii) for a, b in pairs], dtype=torch.float64)


def _boundary_f(a: np.ndarray, b: np.ndarray, radii: Sequence[int]) -> float:
    edge_a, edge_b = _boundary(a), _boundary(b)
    if not (edge_a.any() and edge_b.any()):
        return float(np.array_equal(a, b))
    to_b, to_a = distance_transform_edt(~edge_b)[edge_a], distance_transform_edt(~edge_a)[edge_b]
    return float(np.mean([_f_score(np.mean(to_b <= r), np.mean(to_a <= r)) for r in radii]))


def _f_score(precision: np.floating, recall: np.floating) -> float:
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the foreground pixels with a background pixel among their four neighbours, (H, W) bool."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _foreground(masks: Tensor) -> Tensor:
    return masks > 0.5


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.double() / whole.clamp(min=1), 1.0)  # 1 for 0 / 0

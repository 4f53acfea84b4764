"""Metrics of segmentation: IoU, Dice and boundary F-score of a foreground per image (as in SegDiff, arXiv 2112.00390),
IoU of several classes over all images, and the votes of several runs with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

RADII = (1, 2, 3, 4, 5)  # pixels


def vote(runs: Tensor) -> Tensor:
    """Return one mask from several predictions: 1 where their mean, not their majority, exceeds 1/2.

    Of several classes it is the one of the largest mean.

    Args:
        runs: (R, B, K, H, W) in [0, 1], clipped; K = 1 for a foreground, else a channel for each class.

    Returns:
        (B, K, H, W), 0 or 1; one-hot for several classes.
    """
    mean = runs.mean(0)
    if mean.shape[1] == 1:
        return (mean > 0.5).float()
    return torch.nn.functional.one_hot(mean.argmax(1), mean.shape[1]).movedim(-1, 1).float()


def uncertainty(runs: Tensor) -> Tensor:
    """Return the entropy of the mean of several predictions at each pixel, over that of equal probabilities.

    It is 0 where all runs agree on a clean mask, and 1 where the classes (of a foreground: inside and outside) are
    equally probable.

    Args:
        runs: as for `vote`.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    mean = runs.mean(0).clamp(0, 1)
    p = torch.cat([mean, 1 - mean], dim=1) if mean.shape[1] == 1 else mean
    p = (p + 1e-12) / (p + 1e-12).sum(1, keepdim=True)  # equal where no class has a probability
    return (torch.special.entr(p).sum(1, keepdim=True) / math.log(p.shape[1])).clamp(0, 1)


def class_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of each class over the pixels of all images.

    Pixels without a class in `truth` do not count. Its mean over the classes that are not NaN is the mIoU of semantic
    segmentation (Everingham et al. 2010).

    Args:
        predicted, truth: (B, K, H, W) one-hot; 0 in all of truth's channels for a pixel without a class.

    Returns:
        (K,) float64; NaN for a class that is in neither.
    """
    counted = truth.sum(1, keepdim=True) > 0.5
    a, b = ((x > 0.5) & counted for x in (predicted, truth))
    both, either = (x.sum((0, 2, 3)).double() for x in (a & b, a | b))
    return both / either  # 0 / 0 is NaN


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

"""Measure how well the probabilities of a classifier agree with its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15  # of equal width, as arXiv 1706.04599 has them


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error (Eq. 3, arXiv 1706.04599).

    Images are grouped by the probability of their predicted class; the error is the mean over images of the distance
    between a group's accuracy and its mean probability.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) int64.
        bins: number of groups.

    Returns:
        In [0, 1].
    """
    confidence, predicted = probabilities.double().max(1)
    group = (confidence * bins).ceil().long().clamp(1, bins) - 1  # ((m - 1) / M, m / M]
    gap = (predicted == labels).double() - confidence
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, group, gap).abs().sum() / len(labels))

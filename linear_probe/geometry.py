"""Measures of features without labels: alignment of views, uniformity of images, effective rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from linear_probe.scaling import moments

SMALLEST = 1e-7  # RankMe's epsilon


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> float:
    """Mean distance of two views of an image on the unit sphere, to the power alpha (Eq. 1, arXiv 2005.10242).

    Args:
        x, y: (N, D) features of two views, row by row of the same images; normalised here.

    Returns:
        0 where views agree, at most 4 for alpha = 2.
    """
    return (F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).norm(dim=1).pow(alpha).mean().item()


def uniformity(x: Tensor, t: float = 2, block: int = 1024) -> float:
    """log of the mean Gaussian potential exp(-t d^2) of all pairs on the unit sphere (Eq. 2, arXiv 2005.10242).

    Args:
        x: (N, D) features of different images; normalised here.
        block: rows that are compared with all others at once.

    Returns:
        0 where all features are one, lower where they spread; -2t for a single pair of opposites.
    """
    z, total = F.normalize(x.double(), dim=1), 0.0
    for start in range(0, len(z), block):
        rows = z[start : start + block]
        potential = torch.exp(-t * (2 - 2 * rows @ z.T).clamp(min=0))
        total += potential.sum().item() - potential.diagonal(start).sum().item()
    return math.log(total / (len(z) * (len(z) - 1)))


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the covariance's eigenvalues as shares of their sum (Roy and Vetterli, EUSIPCO 2007).

    Their rank of the covariance matrix, whose singular values are its eigenvalues: k for a Gaussian that is alike in k
    directions and nothing in the others.

    Args:
        x: (N, D) features.

    Returns:
        1 to D; 0 where the features do not vary.
    """
    _, covariance = moments(x)
    return _exp_entropy(torch.linalg.eigvalsh(covariance).clamp(min=0))


def rank_me(x: Tensor) -> float:
    """exp of the entropy of the features' singular values as shares of their sum (Eq. 1, arXiv 2210.02885).

    Of the features as they are: neither centred nor normalised.

    Args:
        x: (N, D) features.
    """
    mean, covariance = moments(x)
    values = torch.linalg.eigvalsh(covariance + torch.outer(mean, mean)).clamp(min=0).sqrt()
    return _exp_entropy(values, SMALLEST)


def _exp_entropy(values: Tensor, smallest: float = 0.0) -> float:
    if values.sum() <= 0:
        return 0.0
    shares = values / values.sum() + smallest
    return torch.exp(torch.special.entr(shares).sum()).item()

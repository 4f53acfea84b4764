"""Measure features without labels: alignment of views, uniformity of images, ranks, similarity of layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from linear_probe.scaling import moments

SMALLEST = 1e-7  # RankMe's and LiDAR's epsilon
RIDGE = 1e-4  # LiDAR's delta


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> float:
    """Return the alignment: mean distance^alpha of two views on the unit sphere (Eq. 1, arXiv 2005.10242).

    Args:
        x, y: (N, D) features of two views of the same images; normalised here.
        alpha: power of the distance, > 0.

    Returns:
        In [0, 2^alpha]; 0 for equal views.
    """
    return (F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).norm(dim=1).pow(alpha).mean().item()


def uniformity(x: Tensor, t: float = 2, block: int = 1024) -> float:
    """Return the uniformity: log of the mean of exp(-t d^2) over pairs on the unit sphere (Eq. 2, arXiv 2005.10242).

    Args:
        x: (N, D) features of different images; normalised here.
        t: inverse scale of the Gaussian potential, > 0.
        block: rows compared with all others at a time.

    Returns:
        In [-4t, 0]; 0 if all features are equal, lower the more evenly they spread.
    """
    z, total = F.normalize(x.double(), dim=1), 0.0
    for start in range(0, len(z), block):
        rows = z[start : start + block]
        potential = torch.exp(-t * (2 - 2 * rows @ z.T).clamp(min=0))
        total += potential.sum().item() - potential.diagonal(start).sum().item()
    return math.log(total / (len(z) * (len(z) - 1)))


def effective_rank(x: Tensor) -> float:
    """Return the effective rank: exp of the entropy of the normalised eigenvalues (Roy and Vetterli, EUSIPCO 2007).

    The eigenvalues are those of the covariance matrix; k equal ones and no others give k.

    Args:
        x: (N, D) features.

    Returns:
        In [1, D]; 0 for constant features.
    """
    _, covariance = moments(x)
    return _exp_entropy(torch.linalg.eigvalsh(covariance).clamp(min=0))


def rank_me(x: Tensor) -> float:
    """Return RankMe: exp of the entropy of the features' normalised singular values (Eq. 1, arXiv 2210.02885).

    Args:
        x: (N, D) features, neither centred nor normalised.

    Returns:
        In [1, D], up to the epsilon 1e-7 of each singular value.
    """
    mean, covariance = moments(x)
    values = torch.linalg.eigvalsh(covariance + torch.outer(mean, mean)).clamp(min=0).sqrt()
    return _exp_entropy(values, SMALLEST)


def lidar(views: Tensor, ridge: float = RIDGE) -> float:
    """Return LiDAR: exp of the entropy of the eigenvalues of Fisher's discriminant (Sec. 4, arXiv 2312.04000).

    An image is a class, and its views are the samples of the class. The eigenvalues are those of
    W^-1/2 B W^-1/2, with B the covariance between the means of the images and W that within an image plus ridge I.

    Args:
        views: (n, q, D) features of q >= 2 random views of each of n >= 2 images.
        ridge: added to the diagonal of W, > 0; features of a small scale need a smaller one.

    Returns:
        In [1, min(n - 1, D)], up to the epsilon 1e-7 of each eigenvalue; 0 if all images have the same mean.
    """
    x = views.double()
    n, q, D = x.shape
    means = x.mean(1)  # (n, D)
    between, within = means - means.mean(0), (x - means[:, None]).reshape(n * q, D)
    W = within.T @ within / (n * q) + ridge * torch.eye(D, dtype=torch.float64, device=x.device)
    values, vectors = torch.linalg.eigh(W)
    whitened = between @ (vectors * values.rsqrt())  # (n, D)
    return _exp_entropy(torch.linalg.eigvalsh(whitened.T @ whitened / n).clamp(min=0), SMALLEST)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of two representations: |Y^T X|^2 / (|X^T X| |Y^T Y|), centred (Sec. 3, arXiv 1905.00414).

    Args:
        x, y: (N, D) and (N, D') features of the same images.

    Returns:
        In [0, 1]; 1 where one is a rotation of the other up to scale and shift, 0 also for constant features.
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return ((y.T @ x).square().sum() / scale).item() if scale > 0 else 0.0


def _exp_entropy(values: Tensor, smallest: float = 0.0) -> float:
    if values.sum() <= 0:
        return 0.0
    fractions = values / values.sum() + smallest
    return torch.exp(torch.special.entr(fractions).sum()).item()

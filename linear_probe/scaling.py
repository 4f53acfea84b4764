"""Fit linear maps of features on the training features alone: standardisation, whitening, PCA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 65536  # rows converted to float64 at a time


@dataclass(frozen=True)
class Affine:
    """Affine map x -> (x - mean) @ matrix.

    Attributes:
        mean: (D,).
        matrix: (D, D'), or (D,) for a diagonal matrix.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map features (N, D) to (N, D')."""
        centred = x - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix

    def leading(self, dimensions: int) -> Affine:
        """Return the map to the first `dimensions` of D' output dimensions."""
        return Affine(self.mean, self.matrix[:, :dimensions])


def moments(x: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of features (N, D), float64, in one pass over blocks of rows."""
    shift = x[:rows].double().mean(0)
    total, outer = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.float64)
    for part in x.split(rows):
        centred = part.double() - shift
        total += centred.sum(0)
        outer += centred.T @ centred
    mean = total / len(x)
    return mean + shift, outer / len(x) - torch.outer(mean, mean)


def standardiser(x: Tensor, threshold: float = 1e-6) -> Affine:
    """Fit the map of every feature to mean 0 and variance 1; constant features become 0.

    Args:
        x: (N, D) features.
        threshold: features with a variance below this fraction of the largest count as constant.
    """
    parts = x.split(ROWS)
    mean = sum((part.double().sum(0) for part in parts), torch.zeros(x.shape[1], dtype=torch.float64)) / len(x)
    variance = sum(((part.double() - mean).square().sum(0) for part in parts), torch.zeros_like(mean)) / len(x)
    keep = variance > threshold * variance.max()
    return Affine(mean.float(), torch.where(keep, variance.clamp(min=1e-30).rsqrt(), 0).float())


def whitener(x: Tensor, dimensions: int | None = None, threshold: float = 1e-5) -> Affine:
    """Fit PCA whitening; constant features become one dimension of 0.

    Args:
        x: (N, D) features.
        dimensions: number of leading components; None for all.
        threshold: components with a variance below this fraction of the largest are dropped.
    """
    mean, values, vectors = principal(x)
    count = int((values > max(0.0, threshold * float(values[:1].sum()))).sum())  # 0 where all features are constant
    count = count if dimensions is None else min(count, dimensions)
    return _affine(mean, vectors[:, :count] * values[:count].rsqrt())


def projector(x: Tensor, dimensions: int) -> Affine:
    """Fit the map of features (N, D) to their leading `dimensions` principal components; constant ones become one 0."""
    mean, _, vectors = principal(x)
    return _affine(mean, vectors[:, :dimensions])


def _affine(mean: Tensor, matrix: Tensor) -> Affine:
    """Return the float32 map of a float64 mean (D,) and matrix (D, D'); for D' = 0, the map to one dimension of 0."""
    return Affine(mean.float(), (matrix if matrix.shape[1] else matrix.new_zeros(len(mean), 1)).float())


def principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (D,), variances (r,), descending, and directions (D, r) of the PCA of features (N, D), float64."""
    if len(x) < x.shape[1]:
        mean = x.double().mean(0)
        return mean, *narrow_eigh(x.double() - mean)
    mean, covariance = moments(x)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, values.flip(0), vectors.flip(1)


def narrow_eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (r,) above 0, descending, and eigenvectors (D, r) of x.T @ x / N, by those of x @ x.T.

    Args:
        x: (N, D) float64 with N < D, where the N x N products are smaller.
    """
    values, left = torch.linalg.eigh(x @ x.T / len(x))
    keep = values > 1e-12 * values[-1]
    values, left = values[keep].flip(0), left[:, keep].flip(1)
    return values, x.T @ left * (len(x) * values).rsqrt()

"""Linear maps of features that are fitted on the training features alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 65536  # that are held as float64 at once


@dataclass(frozen=True)
class Affine:
    """x -> (x - mean) @ matrix.

    Attributes:
        mean: (D,).
        matrix: (D, D') or (D,), the latter a diagonal.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D')."""
        centred = x - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix

    def leading(self, dimensions: int) -> Affine:
        """The first so many of D' dimensions."""
        return Affine(self.mean, self.matrix[:, :dimensions])


def moments(x: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64, streamed over (N, D)."""
    shift = x[:rows].double().mean(0)
    total, outer = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.float64)
    for part in x.split(rows):
        centred = part.double() - shift
        total += centred.sum(0)
        outer += centred.T @ centred
    mean = total / len(x)
    return mean + shift, outer / len(x) - torch.outer(mean, mean)


def standardiser(x: Tensor, floor: float = 1e-6) -> Affine:
    """Every feature to mean 0 and variance 1; one that is constant stays 0."""
    parts = x.split(ROWS)
    mean = sum((part.double().sum(0) for part in parts), torch.zeros(x.shape[1], dtype=torch.float64)) / len(x)
    variance = sum(((part.double() - mean).square().sum(0) for part in parts), torch.zeros_like(mean)) / len(x)
    keep = variance > floor * variance.max()
    return Affine(mean.float(), torch.where(keep, variance.clamp(min=1e-30).rsqrt(), 0).float())


def whitener(x: Tensor, dimensions: int | None = None, floor: float = 1e-5) -> Affine:
    """Principal components scaled to variance 1: the leading `dimensions`, or all above `floor` x the largest.

    Constant features become one dimension of 0.
    """
    mean, values, vectors = principal(x)
    count = int((values > max(0.0, floor * float(values[:1].sum()))).sum())  # 0 where all features are constant
    count = count if dimensions is None else min(count, dimensions)
    return _affine(mean, vectors[:, :count] * values[:count].rsqrt())


def projector(x: Tensor, dimensions: int) -> Affine:
    """The leading principal components, unscaled. Constant features become one dimension of 0."""
    mean, _, vectors = principal(x)
    return _affine(mean, vectors[:, :dimensions])


def _affine(mean: Tensor, matrix: Tensor) -> Affine:
    """Return the map of float64 mean (D,) and matrix (D, D'); where D' = 0, to one dimension of 0."""
    return Affine(mean.float(), (matrix if matrix.shape[1] else matrix.new_zeros(len(mean), 1)).float())


def principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (r,), falling, and directions (D, r) of the principal components of (N, D), float64."""
    if len(x) < x.shape[1]:
        mean = x.double().mean(0)
        return mean, *narrow_eigh(x.double() - mean)
    mean, covariance = moments(x)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, values.flip(0), vectors.flip(1)


def narrow_eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (r,) that are not 0, falling, and eigenvectors (D, r) of x.T @ x / N from the N x N products.

    For fewer rows than columns: x.T @ x would be far larger.

    Args:
        x: (N, D) float64.
    """
    values, left = torch.linalg.eigh(x @ x.T / len(x))
    keep = values > 1e-12 * values[-1]
    values, left = values[keep].flip(0), left[:, keep].flip(1)
    return values, x.T @ left * (len(x) * values).rsqrt()

"""Linear maps of features that are fitted on the training features alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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


def moments(x: Tensor, rows: int = 65536) -> tuple[Tensor, Tensor]:
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
    mean, covariance = moments(x)
    variance = covariance.diagonal()
    keep = variance > floor * variance.max()
    return Affine(mean.float(), torch.where(keep, variance.clamp(min=1e-30).rsqrt(), 0).float())


def whitener(x: Tensor, dimensions: int | None = None, floor: float = 1e-5) -> Affine:
    """Principal components scaled to variance 1: the leading `dimensions`, or all above `floor` x the largest."""
    mean, covariance = moments(x)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    count = int((values > floor * values[0]).sum())
    count = count if dimensions is None else min(count, dimensions)
    return Affine(mean.float(), (vectors[:, :count] * values[:count].rsqrt()).float())


def projector(x: Tensor, dimensions: int) -> Affine:
    """The leading principal components, unscaled."""
    mean, covariance = moments(x)
    _, vectors = torch.linalg.eigh(covariance)
    return Affine(mean.float(), vectors.flip(1)[:, :dimensions].float())

"""The Frechet distance between two sets of features, seen as Gaussians (FID, arXiv 1706.08500)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.errors import CheckpointError
from ldae.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        features: whose features they are (see ldae.metrics.names); only moments of the same ones are compared.
        count: N, how many images.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of (x - mean)(x - mean)^T.
    """

    features: str
    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], features: str) -> Moments:
        """Of features that come in batches (B, D), any B, in one pass.

        Raises:
            ValueError: there are none.
        """
        total: Moments | None = None
        for batch in batches:
            x = batch.double()
            mean = x.mean(0)
            part = cls(features, len(x), mean, (x - mean).T @ (x - mean))
            total = part if total is None else total._with(part)
        if total is None:
            raise ValueError("no features: at least one batch is needed")
        return total

    def _with(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub and LeVeque 1983): large means cost no digits."""
        count, shift = self.count + other.count, other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(self.features, count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased: divided by N - 1.

        Raises:
            ValueError: there is one image alone.
        """
        if self.count < 2:
            raise ValueError("one image has no covariance; at least two are needed")
        return self.scatter / (self.count - 1)

    def save(self, path: Path) -> None:
        """Writes them as safetensors: statistics of a training set are worked out once."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        save_tensors(path, {f"{self.features}/{name}": value for name, value in tensors.items()})

    @classmethod
    def load(cls, path: Path, features: str) -> Moments:
        """What `save` wrote.

        Raises:
            CheckpointError: the file is damaged, or holds moments of other features.
        """
        found = load_tensors(path)
        try:
            count, mean, scatter = (found[f"{features}/{name}"] for name in ("count", "mean", "scatter"))
        except KeyError:
            raise CheckpointError(f"{path} holds no moments of {features}: it has {', '.join(found)}") from None
        return cls(features, int(count), mean, scatter)

    @classmethod
    def from_npz(cls, path: Path, features: str, count: int) -> Moments:
        """Published statistics: an .npz with `mu` (D,) and `sigma` (D, D).

        Args:
            count: of the images that they are of; the file does not say.

        Raises:
            CheckpointError: it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                mean, covariance = (torch.from_numpy(found[name].astype(np.float64)) for name in ("mu", "sigma"))
        except Exception as error:  # whatever numpy makes of a damaged file
            raise CheckpointError(f"{path} holds no statistics mu and sigma ({error})") from None
        return cls(features, count, mean, covariance * (count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances (arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: no
    complex part to drop, no jitter where there are fewer images than dimensions.

    Raises:
        ValueError: the features are not the same network's.
    """
    if a.features != b.features:
        raise ValueError(f"features of {a.features} and of {b.features} cannot be compared")
    A, B = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0)
    return float(((a.mean - b.mean) ** 2).sum() + A.trace() + B.trace() - 2 * product.sqrt().sum())

"""Compare sets of images by their features: FID, KID, precision and recall, Inception Score.

Sources: FID arXiv 1706.08500, KID arXiv 1801.01401, precision and recall arXiv 1904.06991, IS arXiv 1606.03498.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import CheckpointError
from ldae.core.files import load_tensors, save_tensors

INCEPTION = "inception-2015-12-05"  # the features of TensorFlow's Inception-v3 of that day

PUBLISHED: Mapping[str, str] = {"frechet_distance": "FID", "kernel_distance": "KID", "inception_score": "IS"}


def title(score: str, features: str) -> str:
    """`FID` for frechet_distance in Inception's features, `frechet_distance[classifier]` in a classifier's.

    Args:
        score: frechet_distance, kernel_distance, inception_score, precision or recall.
        features: whose they are; INCEPTION for Inception's.
    """
    if features == INCEPTION and score in PUBLISHED:
        return PUBLISHED[score]
    return f"{score}[{features}]"


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        features: whose features they are (see ldae.metrics.distances); only moments of the same ones are compared.
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


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy, k(x, y) = (x . y / D + 1)^3.

    Unbiased: its mean is 0 for sets from one distribution, so it may fall below 0.

    Args:
        a, b: features (N, D) and (M, D), at least two of each.

    Returns:
        A float64 scalar.
    """
    within = (_between_different(x.double()) for x in (a, b))
    return sum(within, -2 * _kernel(a.double(), b.double()).mean())


def kernel_distance(
    a: Tensor, b: Tensor, generator: torch.Generator, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation of squared_mmd over pairs of random subsets: KID in Inception's features.

    Args:
        a, b: features (N, D) and (M, D).
        generator: of the subsets, on the CPU.
        subsets: how many.
        size: of each; the smaller set's where that is less.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise ValueError("at least two features of each set are needed")
    found = torch.stack([squared_mmd(*(_some(x, size, generator) for x in (a, b))) for _ in range(subsets)])
    return float(found.mean()), float(found.std(correction=0))


def _some(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3  # (N, M)


def _between_different(x: Tensor) -> Tensor:
    """The kernel's mean over pairs of different rows."""
    k = _kernel(x, x)
    return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))


ROWS = 1024  # distances are worked out for so many rows at a time


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """How much of what is generated could be real, and how much of what is real is generated (Sec. 2 there).

    A set's manifold is the union of balls about its points, each as large as the distance to the point's k-th nearest
    neighbour in the set. Precision is the share of generated points on the real manifold, recall that of real points
    on the generated one.

    Args:
        real, generated: features (N, D) and (M, D), more than k of each.

    Raises:
        ValueError: a set has too few points.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"more than k={k} points of each set are needed")
    real, generated = real.double(), generated.double()
    return _share_within(generated, real, k), _share_within(real, generated, k)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    rows = centres.split(ROWS)
    radii = torch.cat([torch.cdist(part, centres).kthvalue(k + 1, dim=1).values for part in rows])  # itself is nearest
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) (Sec. 4 there), its mean and standard deviation over parts of the set.

    1 where all images are classified alike, K where each is surely of one of K equally frequent classes.

    Args:
        probabilities: (N, K), rows that sum to 1; by Inception-v3 for the score of that name.
        splits: consecutive parts of the set, each with a p(y) of its own.
    """
    scores = torch.stack([_score(part) for part in probabilities.double().tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp()

"""Distances between sets of images in feature space: FID, KID, precision and recall, Inception Score.

Sources: FID arXiv 1706.08500, its extrapolation arXiv 1911.07023, KID arXiv 1801.01401, precision and recall arXiv
1904.06991, IS arXiv 1606.03498.
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

INCEPTION = "inception-2015-12-05"  # name of the features of TensorFlow's Inception-v3 of that date
ROWS = 1024  # rows that are handled together, which bounds the memory
# metric -> its published name, valid for Inception's features only
PUBLISHED: Mapping[str, str] = {
    "frechet_distance": "FID",
    "frechet_distance_infinity": "FID infinity",
    "kernel_distance": "KID",
    "kernel_distance_error": "KID standard error",
    "inception_score": "IS",
}


def metric_name(metric: str, features: str) -> str:
    """Return the name of a metric: `FID` in Inception's features, else e.g. `frechet_distance[classifier]`.

    Args:
        metric: frechet_distance, frechet_distance_infinity, kernel_distance, kernel_distance_error, inception_score,
            precision or recall.
        features: name of the network; INCEPTION for Inception.
    """
    if features == INCEPTION and metric in PUBLISHED:
        return PUBLISHED[metric]
    return f"{metric}[{features}]"


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        features: name of the network that computed the features.
        count: N, number of images.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of (x - mean)(x - mean)^T.
    """

    features: str
    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], features: str) -> Moments:
        """Compute the moments of batches of features, (B, D) with any B, in one pass.

        Raises:
            ValueError: there are no batches.
        """
        total: Moments | None = None
        for batch in batches:
            x = batch.double()
            mean = x.mean(0)
            part = cls(features, len(x), mean, (x - mean).T @ (x - mean))
            total = part if total is None else total._merge(part)
        if total is None:
            raise ValueError("no features: at least one batch is needed")
        return total

    def _merge(self, other: Moments) -> Moments:
        """Return the moments of the union of two sets (Chan, Golub and LeVeque 1983), stable for large means."""
        count, shift = self.count + other.count, other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(self.features, count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance, (D, D).

        Raises:
            ValueError: there is only one image.
        """
        if self.count < 2:
            raise ValueError("one image has no covariance; at least two are needed")
        return self.scatter / (self.count - 1)

    def save(self, path: Path) -> None:
        """Write the moments to a safetensors file."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        save_tensors(path, {f"{self.features}/{name}": value for name, value in tensors.items()})

    @classmethod
    def load(cls, path: Path, features: str) -> Moments:
        """Read the moments that `save` wrote.

        Raises:
            CheckpointError: the file is damaged, or has moments of other features.
        """
        tensors = load_tensors(path)
        try:
            count, mean, scatter = (tensors[f"{features}/{name}"] for name in ("count", "mean", "scatter"))
        except KeyError:
            raise CheckpointError(f"{path} holds no moments of {features}: it has {', '.join(tensors)}") from None
        return cls(features, int(count), mean, scatter)

    @classmethod
    def from_npz(cls, path: Path, features: str, count: int) -> Moments:
        """Read published statistics from an .npz with `mu` (D,) and `sigma` (D, D).

        Args:
            path: the .npz file.
            features: name of the network.
            count: number of images, which the file does not contain.

        Raises:
            CheckpointError: the file has other content.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
        except Exception as error:  # numpy raises many types on a damaged file
            raise CheckpointError(f"{path} holds no statistics mu and sigma ({error})") from None
        return cls(features, count, mean, covariance * (count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B (Eq. 6, arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), a symmetric matrix. So there
    is no complex part, and no jitter is needed with fewer images than dimensions.

    Raises:
        ValueError: the features are those of different networks.
    """
    return _distance_to(a, _root(a.covariance), b)


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a covariance (D, D); rounding errors below 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _distance_to(a: Moments, root: Tensor, b: Moments) -> float:
    """Return the Frechet distance of b to a, given the root of a's covariance."""
    if a.features != b.features:
        raise ValueError(f"features of {a.features} and of {b.features} cannot be compared")
    A, B = a.covariance, b.covariance
    product = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0)
    return float(((a.mean - b.mean) ** 2).sum() + A.trace() + B.trace() - 2 * product.sqrt().sum())


def images_to_extrapolate(dimensions: int) -> int:
    """Return the least number of images of D dimensions to extrapolate from: 3 D.

    The smallest sub-sample, half of them, must have clearly more images than dimensions: with fewer, the bias of the
    distance is not linear in 1/N.
    """
    return 3 * dimensions


def frechet_distance_infinity(x: Tensor, reference: Moments, generator: torch.Generator, sizes: int = 15) -> float:
    """Return the Frechet distance extrapolated to infinitely many images: FID-infinity (Sec. 3, arXiv 1911.07023).

    The bias of the distance of N images is to first order proportional to 1/N. So distances of random sub-samples, of
    N/2 to N images at regular intervals, are fitted by a line over 1/N, whose value at 0 is returned. It may be
    negative for equal distributions. The bias that the reference has from its own size remains.

    Args:
        x: features (N, D), N >= images_to_extrapolate(D).
        reference: moments of the reference set.
        generator: CPU generator of the sub-samples.
        sizes: number of sub-samples; 15 as published, there from 5,000 images on.

    Raises:
        ValueError: there are too few images.
    """
    if len(x) < (least := images_to_extrapolate(x.shape[1])):
        raise ValueError(f"{len(x)} images are too few to extrapolate from; at least {least} are needed")
    root = _root(reference.covariance)
    counts = np.linspace(len(x) / 2, len(x), sizes).round().astype(int)
    samples = (Moments.of(_subset(x, count, generator).split(ROWS), reference.features) for count in counts)
    distances = [_distance_to(reference, root, sample) for sample in samples]
    _, at_zero = np.polyfit(1 / counts, distances, 1)
    return float(at_zero)


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy with k(x, y) = (x . y / D + 1)^3.

    Its expectation is 0 for two sets from one distribution, so that it may be negative.

    Args:
        a, b: features (N, D) and (M, D), at least two of each.

    Returns:
        A float64 scalar.
    """
    within = (_mean_off_diagonal(x.double()) for x in (a, b))
    return sum(within, -2 * _kernel(a.double(), b.double()).mean())


def kernel_distance(
    a: Tensor, b: Tensor, generator: torch.Generator, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Return the mean and standard deviation of squared_mmd over pairs of random subsets: KID in Inception's features.

    Args:
        a, b: features (N, D) and (M, D).
        generator: CPU generator of the subsets.
        subsets: number of pairs of subsets.
        size: size of each subset, at most that of the smaller set.

    Raises:
        ValueError: a set has fewer than two features.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise ValueError("at least two features of each set are needed")
    distances = torch.stack([squared_mmd(*(_subset(x, size, generator) for x in (a, b))) for _ in range(subsets)])
    return float(distances.mean()), float(distances.std(correction=0))


def kernel_distance_error(a: Tensor, b: Tensor, generator: torch.Generator, subsets: int = 10) -> float:
    """Return the standard error of the squared MMD of two sets, from disjoint subsets.

    Random subsets of `kernel_distance` overlap, so that their spread is not an error of their mean: it is 0 where each
    subset is the whole set. Estimates of disjoint subsets are independent. The standard error of their mean is about
    that of the estimate from both whole sets where the distributions differ, and larger, at most by the root of the
    number of subsets, where they are equal.

    Args:
        a, b: features (N, D) and (M, D), at least four of each.
        generator: CPU generator of the division.
        subsets: number of parts of each set, at most half of the smaller set.

    Raises:
        ValueError: a set has fewer than four features.
    """
    subsets = min(subsets, len(a) // 2, len(b) // 2)
    if subsets < 2:
        raise ValueError("at least four features of each set are needed")
    parts = (_subset(x, len(x), generator).tensor_split(subsets) for x in (a, b))
    estimates = torch.stack([squared_mmd(*pair) for pair in zip(*parts, strict=True)])
    return float(estimates.std() / subsets**0.5)


def _subset(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3  # (N, M)


def _mean_off_diagonal(x: Tensor) -> Tensor:
    """Return the mean of the kernel over pairs of different rows."""
    k = _kernel(x, x)
    return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Sec. 2, arXiv 1904.06991).

    The manifold of a set is the union of balls around its points; the radius is the distance to the point's k-th
    nearest neighbour in the set. Precision is the fraction of generated points on the real manifold, recall that of
    real points on the generated one.

    Args:
        real, generated: features (N, D) and (M, D), more than k of each.
        k: number of neighbours.

    Raises:
        ValueError: a set has too few points.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"more than k={k} points of each set are needed")
    real, generated = real.double(), generated.double()
    return _fraction_on_manifold(generated, real, k), _fraction_on_manifold(real, generated, k)


def _fraction_on_manifold(points: Tensor, centres: Tensor, k: int) -> float:
    blocks = centres.split(ROWS)  # k + 1: each point is its own nearest neighbour
    radii = torch.cat([torch.cdist(part, centres).kthvalue(k + 1, dim=1).values for part in blocks])  # (M,)
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return the mean and standard deviation over splits of exp(mean KL(p(y|x) || p(y))) (Sec. 4, arXiv 1606.03498).

    It is 1 if all images have the same class probabilities, and K if each has probability 1 for one of K equally
    frequent classes.

    Args:
        probabilities: (N, K), rows that sum to 1; those of Inception-v3 for the published score.
        splits: number of consecutive parts of the set, each with its own p(y).
    """
    scores = torch.stack([_score(part) for part in probabilities.double().tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp()

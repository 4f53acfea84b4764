"""The kernel distance between two sets of features (KID, arXiv 1801.01401)."""

from __future__ import annotations

import torch
from torch import Tensor


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

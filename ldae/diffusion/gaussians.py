"""What the variational bound needs of Gaussians. Everything is per number, in nats."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_BIN = 1 / 255  # of 256 levels on [-1, 1]
EDGE = 0.999  # beyond it lie the two outermost levels, -1 and 1
LEAST = 1e-12  # probability that a logarithm is still taken of


def divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL[N(mean, e^log_variance) | N(other_mean, e^other_log_variance)] of each number; shapes broadcast."""
    difference = other_log_variance - log_variance
    square = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    return 0.5 * (difference - 1 + torch.exp(-difference) + square)


def discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-ln of the probability that N(mean, e^log_variance) gives the level of x, of 256 on [-1, 1].

    A level is x +- 1/255; the lowest reaches to -infinity, the highest to infinity (Eq. 13, arXiv 2006.11239).
    Probabilities below 1e-12 count as that. The published code approximates the normal distribution function
    by a tanh, here it is exact; the two differ by less than 2e-4.

    Args:
        x, mean, log_variance: of one shape; x in [-1, 1].
    """
    scale = torch.exp(-0.5 * log_variance)
    above = (x + HALF_BIN - mean) * scale
    below = (x - HALF_BIN - mean) * scale
    inner = torch.special.ndtr(above) - torch.special.ndtr(below)
    lowest, highest = torch.special.ndtr(above), torch.special.ndtr(-below)
    probability = torch.where(x < -EDGE, lowest, torch.where(x > EDGE, highest, inner))
    return -probability.clamp(min=LEAST).log()

"""Ramps of beta beyond DDPM's: in its root, and SR3's continuous level. gamma_t^2 = prod(1 - beta)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldae.diffusion.schedules import NoiseSchedule, below_one, variance_preserving
from ldae.diffusion.tables import taken
from ldae.parts import Count, Positive
from ldae.types import Draws, NoiseLevel


class Quadratic(NoiseSchedule):
    """The root of beta linear, between the roots of the two ends; not scaled by T (DDPM's code, arXiv 2006.11239).

    Raises:
        ConfigError: a beta reaches 1.
    """

    def __init__(self, T: Count = 1000, beta_first: Positive = 1e-4, beta_last: Positive = 0.02):
        below_one(beta_first=beta_first, beta_last=beta_last)
        self.beta = torch.linspace(math.sqrt(beta_first), math.sqrt(beta_last), T, dtype=torch.float64) ** 2
        super().__init__(T)

    def table(self) -> tuple[Tensor, Tensor]:
        return variance_preserving((1 - self.beta).cumprod(0))


class ContinuousGamma(NoiseSchedule):
    """A level between the steps: t uniform, then gamma^2 uniform in (gamma_t^2, gamma_{t-1}^2), gamma_{-1} = 1.

    Eq. 7 and Sec. 2.4 of arXiv 2104.07636, whose gamma is gamma^2 here. Both are drawn for every image. A network that
    is told gamma, not t, can then be sampled from over any steps. `at` has the grid. The betas are not published;
    these, linear and not scaled by T, are those of public code.

    Raises:
        ConfigError: a beta reaches 1.
    """

    def __init__(self, T: Count = 2000, beta_first: Positive = 1e-6, beta_last: Positive = 1e-2):
        below_one(beta_first=beta_first, beta_last=beta_last)
        self.beta = torch.linspace(beta_first, beta_last, T, dtype=torch.float64)
        super().__init__(T)
        self.ends = torch.cat([torch.ones(1, dtype=torch.float64), self.gamma**2])  # gamma^2 of -1, 0, ..., T-1

    def table(self) -> tuple[Tensor, Tensor]:
        return variance_preserving((1 - self.beta).cumprod(0))

    def draw(self, count: int, draws: Draws) -> NoiseLevel:
        """A level for each of `count` images: t uniform on {0, ..., T-1}, gamma and sigma from its interval."""
        t, u = draws.integers(self.T, count), draws.uniform((count,))
        low, high = taken(self.ends, t + 1), taken(self.ends, t)
        gamma2 = torch.lerp(low, high, u.double())  # (B,); u < 1, so never quite 1
        gamma, sigma = (x.float() for x in variance_preserving(gamma2))
        return NoiseLevel(t, gamma, sigma)

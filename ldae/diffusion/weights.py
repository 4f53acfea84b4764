"""Loss weights lambda(gamma, sigma) of noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from ldae.core.types import NoiseLevel, Positive
from ldae.diffusion.targets import Target


class Weight(ABC):
    """Loss weight as a function of the noise level."""

    @abstractmethod
    def __call__(self, level: NoiseLevel) -> Tensor:
        """Return the weights of levels, (B,) float32; infinite where the formula divides by zero."""


class One(Weight):
    """1 at every level (L_simple, Eq. 14 of arXiv 2006.11239)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.sigma)


class Zero(Weight):
    """0 at every level: the variational bound is the whole loss (L_vlb, arXiv 2102.09672)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.zeros_like(level.sigma)


class Gamma2(Weight):
    """gamma^2 (step 8 of arXiv 2401.14404)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.gamma**2


class SNR(Weight):
    """gamma^2 / sigma^2: the squared error in x0 becomes that in eps."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.gamma**2 / level.sigma**2


class InverseVariance(Weight):
    """1 / (1 + sigma^2) (step 9 of arXiv 2401.14404)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return 1 / (1 + level.sigma**2)


class MinSNR(Weight):
    """min(SNR, cap) on the error in x0, for every target (Sec. 3.4, arXiv 2303.09556).

    SNR = gamma^2 / sigma^2. With eps as the target it is min(1, cap / SNR), with v min(SNR, cap) / (SNR + 1). The cap
    limits the weight of nearly clean levels, where SNR is largest.

    Args:
        target: the quantity whose error the loss measures.
        cap: upper bound of the SNR; 5 in the paper.
    """

    def __init__(self, target: Target, cap: Positive = 5.0):
        self.target, self.cap = target, cap

    def __call__(self, level: NoiseLevel) -> Tensor:
        level = replace(level, gamma=level.gamma.clamp(min=1e-15))  # at gamma = 0 eps has the limit 1, not 0 / 0
        snr = level.gamma**2 / level.sigma**2
        return snr.clamp(max=self.cap) / self.target.error_scale(level)

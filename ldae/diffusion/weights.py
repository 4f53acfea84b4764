"""lambda(gamma, sigma): how much each noise level counts in the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.types import NoiseLevel


class Weight(ABC):
    """Maps levels to weights."""

    @abstractmethod
    def __call__(self, level: NoiseLevel) -> Tensor:
        """(B,) float32; infinite where the formula divides by zero."""


class One(Weight):
    """1: every level counts alike (L_simple, Eq. 14 of arXiv 2006.11239)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.sigma)


class Zero(Weight):
    """0: the prediction has no loss of its own; the bound is all (L_vlb, arXiv 2102.09672)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.zeros_like(level.sigma)


class Gamma2(Weight):
    """gamma^2 (step 8 of arXiv 2401.14404)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.gamma**2


class SNR(Weight):
    """gamma^2 / sigma^2: turns the error in x0 into the error in eps."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.gamma**2 / level.sigma**2


class InverseVariance(Weight):
    """1 / (1 + sigma^2) (step 9 of arXiv 2401.14404)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return 1 / (1 + level.sigma**2)

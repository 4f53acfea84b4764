"""Regression targets, and their inverses from a prediction to x0.

With x_t = gamma x0 + sigma eps: eps = (x_t - gamma x0) / sigma, v = gamma eps - sigma x0
(arXiv 2202.00512, App. D). gamma^2 + sigma^2 = 1 is not assumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.core.types import NoiseLevel, expand
from ldae.diffusion.corruptions.base import Mixed, State
from ldae.diffusion.schedules import NoiseSchedule


class Target(ABC):
    """Regression target and its inverse.

    Attributes:
        requires_noise: the target is built from the noise, and exists only in the space that the noise was added in.
    """

    requires_noise = True

    @abstractmethod
    def of(self, clean: Tensor, state: State, level: NoiseLevel) -> Tensor:
        """Return the target y of `clean`, (B, ...)."""

    @abstractmethod
    def to_x0(self, out: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return the clean signal that a prediction `out` at `x_t` determines, (B, ...).

        Raises:
            ZeroDivisionError: on a CPU, gamma = 0 at a level, where a predicted eps does not determine x0.
        """

    def determines_x0(self, level: NoiseLevel) -> Tensor:
        """Return the levels at which a prediction determines x0, as booleans (B,)."""
        return torch.ones_like(level.gamma, dtype=torch.bool)

    @abstractmethod
    def error_scale(self, level: NoiseLevel) -> Tensor:
        """Return the factor from a squared error in x0 to one in the target, (B,).

        Infinite at sigma = 0 unless the target is x0.
        """


class X0(Target):
    """Clean signal x0 (step 8 of arXiv 2401.14404)."""

    requires_noise = False

    def of(self, clean: Tensor, state: State, level: NoiseLevel) -> Tensor:
        """Return x0, (B, ...)."""
        return clean

    def to_x0(self, out: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return the prediction, (B, ...)."""
        return out

    def error_scale(self, level: NoiseLevel) -> Tensor:
        """Return 1 at every level, (B,)."""
        return torch.ones_like(level.sigma)


class Eps(Target):
    """Noise (Eq. 14, arXiv 2006.11239)."""

    def of(self, clean: Tensor, state: State, level: NoiseLevel) -> Tensor:
        """Return eps, (B, ...)."""
        return _noise(state)

    def determines_x0(self, level: NoiseLevel) -> Tensor:
        """Return whether gamma > 0, (B,) bool."""
        return level.gamma > 0

    def to_x0(self, out: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return (x_t - sigma eps) / gamma, (B, ...); on a GPU infinite where gamma = 0, without an error."""
        on_host = level.gamma.device.type == "cpu"  # elsewhere the check would wait for the device at every step
        if on_host and not self.determines_x0(level).all():
            raise ZeroDivisionError("gamma = 0 at one of the levels: x0 cannot be had from a predicted eps there")
        return (x_t - expand(level.sigma, x_t) * out) / expand(level.gamma, x_t)

    def error_scale(self, level: NoiseLevel) -> Tensor:
        """Return gamma^2 / sigma^2, (B,)."""
        return level.gamma**2 / level.sigma**2


class V(Target):
    """v = gamma eps - sigma x0; x0 = (gamma x_t - sigma v) / (gamma^2 + sigma^2)."""

    def of(self, clean: Tensor, state: State, level: NoiseLevel) -> Tensor:
        """Return gamma eps - sigma x0, (B, ...)."""
        return expand(level.gamma, clean) * _noise(state) - expand(level.sigma, clean) * clean

    def determines_x0(self, level: NoiseLevel) -> Tensor:
        """Return whether gamma^2 + sigma^2 > 0, (B,) bool."""
        return level.gamma**2 + level.sigma**2 > 0

    def to_x0(self, out: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return (gamma x_t - sigma v) / (gamma^2 + sigma^2), (B, ...)."""
        gamma, sigma = expand(level.gamma, x_t), expand(level.sigma, x_t)
        return (gamma * x_t - sigma * out) / (gamma**2 + sigma**2)

    def error_scale(self, level: NoiseLevel) -> Tensor:
        """Return (gamma^2 + sigma^2)^2 / sigma^2, (B,)."""
        return (level.gamma**2 + level.sigma**2) ** 2 / level.sigma**2


def usable_steps(schedule: NoiseSchedule, target: Target) -> int:
    """Return the number of steps that a sampler can visit: those before the first that does not determine x0.

    For `linear_gamma2` with eps as the target it is T - 1: gamma = 0 at the last one.
    """
    usable = target.determines_x0(schedule.at(torch.arange(schedule.T)))  # (T,)
    return int(usable.long().cumprod(0).sum())


def _noise(state: State) -> Tensor:
    assert isinstance(state, Mixed)  # Denoise checks is_additive
    return state.eps

"""Additive Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from ldae.diffusion.corruptions.base import Corruption, State
from ldae.types import Draws, NoiseLevel, expand


class Gaussian(Corruption):
    """x_t = gamma_t x0 + sigma_t eps, eps ~ N(0, I) (Eq. 1, arXiv 2401.14404)."""

    def draw(self, x0: Tensor, draws: Draws) -> State:
        return State(eps=draws.normal(x0.shape))

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        return expand(level.gamma, x0) * x0 + expand(level.sigma, x0) * state.eps

"""Additive Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel, expand
from ldae.diffusion.corruptions.base import Corruption, Mixed, State


class Gaussian(Corruption):
    """x_t = gamma_t x0 + sigma_t eps, eps ~ N(0, I) (Eq. 1, arXiv 2401.14404)."""

    is_additive = True

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Mixed:
        return Mixed(eps=rng.normal(x0.shape))

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        assert isinstance(state, Mixed)
        return expand(level.gamma, x0) * x0 + expand(level.sigma, x0) * state.eps

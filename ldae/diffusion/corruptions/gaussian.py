"""Additive Gaussian noise: white, or with a standard deviation for each latent dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, NoiseLevel, expand
from ldae.diffusion.corruptions.base import Corruption, HasSpectrum, Mixed, State


class Gaussian(Corruption):
    """x_t = gamma_t x0 + sigma_t eps, eps ~ N(0, I) (Eq. 1, arXiv 2401.14404)."""

    is_additive = True

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Mixed:
        """Draw standard normal noise shaped like `x0`."""
        return Mixed(eps=rng.normal(x0.shape))

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return gamma x0 + sigma eps."""
        assert isinstance(state, Mixed)
        return expand(level.gamma, x0) * x0 + expand(level.sigma, x0) * state.eps


class GaussianSpectrum(Gaussian):
    """z_t = gamma_t z0 + sigma_t eps with eps_i ~ N(0, s_i^2) in latent dimension i, s_i^2 ~ v_i^power.

    v_i is the variance of the dimension over the training images, and the mean of s_i^2 is 1. Power 0 is white noise.
    Power 1 gives every dimension the same signal-to-noise ratio, as white noise does on latents of unit variance
    (`tokenizer.scaling=each`); a power between them lies between `scaling=one` and `scaling=each`, a negative one adds
    more noise where there is less signal. The target `eps` is the noise with these deviations.

    Args:
        tokenizer: one with eigenvalues (patch_pca, pixel).
        power: of the variance.

    Raises:
        ConfigError: the tokenizer has no eigenvalues.
    """

    samplable = False  # samplers draw white noise

    def __init__(self, tokenizer: object, power: float = 0.5):
        if not isinstance(tokenizer, HasSpectrum):
            name = type(tokenizer).__name__
            raise ConfigError("part", "GaussianSpectrum", f"needs the variances of patch_pca or pixel; {name} has none")
        self.tokenizer, self.power = tokenizer, power

    def deviations(self) -> Tensor:
        """Return s_i, (d, 1, 1) float32; a dimension constant over the training images has the least other v."""
        variances = self.tokenizer.variances()  # (d,) float64
        varying = variances > 0
        least = torch.where(varying, variances, torch.inf).min()
        squares = torch.where(varying.any(), variances.clamp(min=least), 1.0) ** self.power
        return (squares / squares.mean()).sqrt().float().reshape(-1, 1, 1)

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Mixed:
        """Draw noise with the deviations s_i, shaped like `x0`."""
        return Mixed(eps=self.deviations().to(x0.device) * rng.normal(x0.shape))

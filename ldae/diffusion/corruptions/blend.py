"""Blending of two images."""

from __future__ import annotations

from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.base import Mixed
from ldae.diffusion.corruptions.gaussian import Gaussian
from ldae.diffusion.schedules import lookup


class Blend(Gaussian):
    """x_t = gamma_t x0 + sigma_t y with another image y in place of noise: animorphosis (Sec. 5, arXiv 2208.09392).

    The published schedule is the cosine one with T = 200.
    """

    pixel_only = True

    def __init__(self) -> None:
        self.pool: Tensor | None = None

    def set_images(self, images: Tensor) -> None:
        """Set the images that are blended in, (M, 3, H, W) uint8, of the size of x0."""
        self.pool = images

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Mixed:
        """Draw an image of the pool, uniformly, for each of `x0`.

        Raises:
            ConfigError: the pool is missing, or its images have another size.
        """
        if self.pool is None:
            raise ConfigError("part", "Blend", "has no images to blend in; give it some by set_images(images)")
        if self.pool.shape[1:] != x0.shape[1:]:
            sizes = f"{tuple(self.pool.shape[1:])} to blend into {tuple(x0.shape[1:])}"
            raise ConfigError("part", "Blend", f"was given images of {sizes}; resize them")
        chosen = lookup(self.pool, rng.integers(len(self.pool), len(x0)))
        return Mixed(eps=2 * (chosen / 255) - 1)

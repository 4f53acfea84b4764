"""Masking with a flat colour, from the border to the centre."""

from __future__ import annotations

import torch
from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel, NonNegative, Positive
from ldae.diffusion.corruptions.base import Corruption, Mixed, State
from ldae.diffusion.corruptions.mask import around, holes, middle, reach
from ldae.diffusion.corruptions.tables import Table
from ldae.diffusion.schedules import NoiseSchedule


class ColourMask(Corruption):
    """x_t = (1 - w_t) x0 + w_t c with a flat random colour c ~ U[-1/2, 1/2]^3 (Sec. 5, arXiv 2208.09392).

    w_t is the product of the first T - 1 - t masks 1 - exp(-r^2 / (2 beta_i^2)), beta_i = first + step i: the
    published schedule, reversed. At t = T-1 all pixels have the colour, at T-2 all but the centre.

    Args:
        schedule: gives T.
        image_shape: (3, n, n); the centre is pixel (n / 2 - 1, n / 2 - 1).
        first, step: beta_i, a standard deviation in pixels.
    """

    pixel_only = True

    def __init__(self, schedule: NoiseSchedule, image_shape: tuple[int, int, int], first: Positive, step: NonNegative):
        self.n = image_shape[-1]
        beta = first + step * torch.arange(schedule.T - 1, dtype=torch.float64)
        grown = holes(beta, reach(self.n)).cumprod(0)
        self.filled = Table(torch.cat([grown.flip(0), torch.ones(1, grown.shape[1], dtype=grown.dtype)]))  # (T, r^2)

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Mixed:
        """Draw one colour for each image, expanded to its shape."""
        colour = rng.uniform(x0.shape[:2]) - 0.5  # (B, C)
        return Mixed(eps=colour[:, :, None, None].expand_as(x0))

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images whose masked part has the drawn colour."""
        assert isinstance(state, Mixed)
        w = around(middle(x0, self.n), self.filled, level.t, self.n)
        return (1 - w) * x0 + w * state.eps

"""Repeated halving of the resolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, NoiseLevel
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.corruptions.tables import Separable
from ldae.diffusion.schedules import NoiseSchedule


class Pixelate(Corruption):
    """For i = 0..t: resize to n / 2^(i+1) pixels, and to n again by nearest neighbours (arXiv 2208.09392).

    Every step resizes the n pixels of the previous one, without antialiasing. A bicubic step then weighs 4 pixels by
    (-3, 19, 19, -3) / 32; from the second step on these 4 lie in two blocks, and the result is their mean. `bilinear`
    and `area` are the mean of blocks at every step.

    Args:
        schedule: gives T.
        image_shape: (C, n, n).
        filter: of the resizing to n / 2^(i+1).

    Raises:
        ConfigError: the image cannot be halved T times.
    """

    pixel_only = True

    def __init__(
        self,
        schedule: NoiseSchedule,
        image_shape: tuple[int, int, int],
        filter: Literal["bicubic", "bilinear", "area"] = "bicubic",
    ):
        n, T = image_shape[-1], schedule.T
        if n % 2**T:
            raise ConfigError("schedule.T", T, f"is more often than {n} pixels can be halved")
        self.pixelated = Separable([_halved(n, 2 ** (i + 1), filter) for i in range(T)])

    def draw(self, x0: Tensor, rng: BatchGenerator) -> State:
        """Return the empty state: the corruption is deterministic."""
        return State()

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images whose side was halved t + 1 times and enlarged again."""
        return self.pixelated(x0, level.t)


def _halved(n: int, block: int, mode: str) -> Tensor:
    """Return the matrix that resizes a line of n pixels to n / block and back, (n, n) float64."""
    line = torch.eye(n, dtype=torch.float64)[None, None]
    small = F.interpolate(line, size=(n // block, n), mode=mode)[0, 0]  # columns stay: (n / block, n)
    return small.repeat_interleave(block, 0)

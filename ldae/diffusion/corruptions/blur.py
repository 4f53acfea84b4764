"""Repeated Gaussian blur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, NoiseLevel, NonNegative, Positive
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.corruptions.tables import Separable, quantize_8_bit
from ldae.diffusion.schedules import NoiseSchedule


class Blur(Corruption):
    """x_t = G_t * ... * G_0 * x0, G_i a Gaussian of sigma_i = (first + step i) e^(growth i) (arXiv 2208.09392).

    Args:
        schedule: gives T.
        image_shape: (C, n, n).
        kernel: taps of a Gaussian, odd; wide Gaussians are truncated.
        first, step, growth: sigma_i in pixels. step = growth = 0: constant; growth = 0: linear; step = 0: exponential.
        padding: `reflect` does not repeat the border; `circular` preserves the mean of a channel.
        mean_at_end: the last step maps every pixel to the mean of its channel, for generation.
        discrete: quantise the network's input to 8 bits.

    Raises:
        ConfigError: the kernel is even, or too wide to reflect an image in.
    """

    pixel_only = True

    def __init__(
        self,
        schedule: NoiseSchedule,
        image_shape: tuple[int, int, int],
        kernel: Count,
        first: Positive,
        step: NonNegative = 0.0,
        growth: float = 0.0,
        padding: Literal["reflect", "circular"] = "reflect",
        mean_at_end: bool = False,
        discrete: bool = False,
    ):
        n, fold = image_shape[-1], FOLDS[padding]
        if kernel % 2 == 0:
            raise ConfigError("kernel", kernel, "must be odd")
        if padding == "reflect" and kernel // 2 >= n:
            raise ConfigError("kernel", kernel, f"must be below {2 * n} to reflect images of {n} pixels")
        self.discrete = discrete
        i = torch.arange(schedule.T, dtype=torch.float64)
        self.sigma = (first + step * i) * torch.exp(growth * i)  # (T,)
        if not ((self.sigma > 1e-6) & (self.sigma < 1e6)).all():
            raise ConfigError("growth", growth, f"makes sigma {float(self.sigma[-1]):g} pixels; give one nearer to 0")
        steps = [convolution(taps(float(s), kernel), n, fold) for s in self.sigma]
        if mean_at_end:
            steps[-1] = torch.full((n, n), 1 / n, dtype=torch.float64) @ steps[-1]
        self.blurred = Separable(steps)

    def draw(self, x0: Tensor, rng: BatchGenerator) -> State:
        """Return the empty state: the blur is deterministic."""
        return State()

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images blurred by the kernels up to t."""
        return self.blurred(x0, level.t)

    def corrupt(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return blurred images, quantised to 8 bits with `discrete`."""
        x_t = self.at(x0, level, state)
        return quantize_8_bit(x_t) if self.discrete else x_t


def taps(sigma: float, count: int) -> Tensor:
    """Return a Gaussian at `count` integers around 0, normalised to sum 1: (count,) float64."""
    offset = torch.arange(count, dtype=torch.float64) - count // 2
    weights = torch.exp(-(offset**2) / (2 * sigma**2))
    return weights / weights.sum()


def convolution(weights: Tensor, n: int, fold: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return the (n, n) matrix that convolves a line of n pixels with symmetric `weights`.

    Args:
        weights: (count,).
        n: pixels.
        fold: (positions outside 0..n-1, n) -> the pixels that pad them.
    """
    count = len(weights)
    row = torch.arange(n)[:, None].expand(n, count)
    column = fold(row + torch.arange(count) - count // 2, n)
    matrix = torch.zeros(n, n, dtype=weights.dtype)
    return matrix.index_put_((row, column), weights.expand(n, count), accumulate=True)


def _circular(position: Tensor, n: int) -> Tensor:
    return position % n


def _reflect(position: Tensor, n: int) -> Tensor:
    return n - 1 - (n - 1 - position.abs()).abs()


# padding -> (positions, n) -> the pixels of 0..n-1 at these positions
FOLDS = {"circular": _circular, "reflect": _reflect}

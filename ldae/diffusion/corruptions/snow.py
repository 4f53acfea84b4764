"""Snowfall, adapted from ImageNet-C (arXiv 1903.12261)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, NoiseLevel, NonNegative, Positive, Range, expand
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.corruptions.blur import taps
from ldae.diffusion.corruptions.tables import Table
from ldae.diffusion.schedules import NoiseSchedule

LUMA = Table(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))  # of red, green, blue in grey


@dataclass(frozen=True)
class Snowfall(State):
    """Snow flakes of an image.

    Attributes:
        flakes: (B, n, n) magnified Gaussian field; pixels above a step's threshold are snow.
        vertical: (B,) bool, motion blur along columns rather than rows.
    """

    flakes: Tensor
    vertical: Tensor


class Snow(Corruption):
    """x_t = clip(x + s_t + rot180(s_t)) with x of [0, 1], s_t the flakes above a threshold, motion-blurred.

    A function of the clean image, not of x_{t-1} (code of arXiv 2208.09392, its levels 1 to 4). Flakes and direction
    are drawn for every image, where that code draws them once for a batch. Pairs of numbers are the values at the
    first and the last step, linearly interpolated between them.

    Args:
        schedule: gives T.
        image_shape: (3, n, n).
        mean, std: of the field of flakes.
        zoom: its magnification.
        kernel: taps of the motion blur, odd.
        threshold, sigma: the smallest visible flake; the motion blur in pixels.
        brightness: weight of x against a brightened grey, in max(x, 1.5 grey + 0.5); null keeps x.

    Raises:
        ConfigError: the kernel is even, or a pair is not of two numbers.
    """

    pixel_only = True

    def __init__(
        self,
        schedule: NoiseSchedule,
        image_shape: tuple[int, int, int],
        mean: float,
        std: Positive,
        zoom: Annotated[float, Range(low=1)],
        kernel: Count,
        threshold: tuple[float, ...],
        sigma: tuple[Positive, ...],
        brightness: tuple[NonNegative, ...] | None = None,
    ):
        if kernel % 2 == 0:
            raise ConfigError("kernel", kernel, "must be odd")
        self.n, self.mean, self.std, self.zoom = image_shape[-1], mean, std, zoom
        self.threshold = Table(_interpolate("threshold", threshold, schedule.T))  # (T,)
        widths = _interpolate("sigma", sigma, schedule.T).tolist()
        self.streaks = Table(torch.stack([_streak(taps(width, kernel), self.n) for width in widths]))  # (T, n, n)
        self.brightness = Table(_interpolate("brightness", brightness or (1.0, 1.0), schedule.T))

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Snowfall:
        """Draw the snow of each image."""
        side = math.ceil(self.n / self.zoom)
        field = self.mean + self.std * rng.normal((len(x0), side, side))
        return Snowfall(magnify(field, self.zoom, self.n), rng.uniform((len(x0),)) > 0.5)

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images under the snow of t."""
        assert isinstance(state, Snowfall)
        x, s = (x0 + 1) / 2, self.snow_layer(level.t, state)[:, None]
        w = expand(self.brightness[level.t], x)
        x = w * x + (1 - w) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
        return (x + s + s.flip(-2, -1)).clamp(0, 1) * 2 - 1

    def snow_layer(self, t: Tensor, state: Snowfall) -> Tensor:
        """Return the snow s_t at steps `t`, (B,): (B, n, n), non-negative."""
        threshold, vertical = expand(self.threshold[t], state.flakes), state.vertical[:, None, None]
        visible = torch.where(state.flakes >= threshold, state.flakes, 0).clamp(0, 1)
        along = torch.where(vertical, visible.mT, visible) @ self.streaks[t]
        return torch.where(vertical, along.mT, along)


def magnify(field: Tensor, zoom: float, n: int) -> Tensor:
    """Magnify fields (B, c, c) to c zoom pixels by linear interpolation and crop the centre, (B, n, n)."""
    side = round(field.shape[-1] * zoom)
    large = F.interpolate(field[:, None], size=side, mode="bilinear", align_corners=True)[:, 0]
    begin = (side - n) // 2
    return large[:, begin : begin + n, begin : begin + n]


def _streak(weights: Tensor, n: int) -> Tensor:
    """Return the (n, n) matrix that convolves a line of n pixels with symmetric `weights`, zero-padded."""
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    return F.pad(weights[len(weights) // 2 :], (0, n))[distance]


def _grey(x: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", x, LUMA.on(x.device).to(x.dtype))[:, None]


def _interpolate(key: str, ends: tuple[float, ...], count: int) -> Tensor:
    if len(ends) != 2:
        raise ConfigError(key, ends, "must be two numbers, of the first and the last step")
    return torch.linspace(ends[0], ends[1], count, dtype=torch.float64)

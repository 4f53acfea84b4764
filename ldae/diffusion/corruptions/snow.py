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

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue in grey


@dataclass(frozen=True)
class Snowfall(State):
    """The flakes of an image.

    Attributes:
        flakes: (B, n, n) a blurred normal field; where it is above a step's threshold there is snow.
        vertical: (B,) bool, whether they fall along columns rather than rows.
    """

    flakes: Tensor
    vertical: Tensor


class Snow(Corruption):
    """x_t = clip(x + s_t + rot180(s_t)) with x of [0, 1], s_t the flakes above a threshold, blurred along their way.

    Always of the clean image, not of x_{t-1} (code of arXiv 2208.09392, its levels 1 to 4). Every image has
    flakes and a direction of its own, where that code draws them once for a batch. Pairs of numbers are those of
    the first and the last step, the others lie evenly between them.

    Args:
        schedule: its T alone counts.
        image_shape: (3, n, n).
        mean, std: of the field of flakes.
        zoom: its magnification.
        kernel: taps of the motion blur, odd.
        threshold, sigma: the least flake that is seen; the motion blur in pixels.
        brightness: share of x beside a brightened grey, in max(x, 1.5 grey + 0.5); null leaves x as it is.

    Raises:
        ConfigError: the kernel is even, or a pair has not two numbers.
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
        self.threshold = Table(_between("threshold", threshold, schedule.T))  # (T,)
        widths = _between("sigma", sigma, schedule.T).tolist()
        self.streaks = Table(torch.stack([_streak(taps(width, kernel), self.n) for width in widths]))  # (T, n, n)
        self.share = Table(_between("brightness", brightness or (1.0, 1.0), schedule.T))

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Snowfall:
        side = math.ceil(self.n / self.zoom)
        field = self.mean + self.std * rng.normal((len(x0), side, side))
        return Snowfall(magnified(field, self.zoom, self.n), rng.uniform((len(x0),)) > 0.5)

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        assert isinstance(state, Snowfall)
        x, s = (x0 + 1) / 2, self.layer(level.t, state)[:, None]
        share = expand(self.share[level.t], x)
        x = share * x + (1 - share) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
        return (x + s + s.flip(-2, -1)).clamp(0, 1) * 2 - 1

    def layer(self, t: Tensor, state: Snowfall) -> Tensor:
        """Snow at steps `t`, (B,), on one side: (B, n, n) of 0 and above."""
        threshold, vertical = expand(self.threshold[t], state.flakes), state.vertical[:, None, None]
        seen = torch.where(state.flakes >= threshold, state.flakes, 0).clamp(0, 1)
        along = torch.where(vertical, seen.mT, seen) @ self.streaks[t]
        return torch.where(vertical, along.mT, along)


def magnified(field: Tensor, zoom: float, n: int) -> Tensor:
    """(B, c, c) by linear interpolation between its corners to c zoom pixels; of those the middle, (B, n, n)."""
    side = round(field.shape[-1] * zoom)
    large = F.interpolate(field[:, None], size=side, mode="bilinear", align_corners=True)[:, 0]
    begin = (side - n) // 2
    return large[:, begin : begin + n, begin : begin + n]


def _streak(weights: Tensor, n: int) -> Tensor:
    """The (n, n) matrix that convolves a line of n pixels with symmetric `weights`, nothing outside."""
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    return F.pad(weights[len(weights) // 2 :], (0, n))[distance]


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device)
    return torch.einsum("bchw,c->bhw", x, weights)[:, None]


def _between(key: str, ends: tuple[float, ...], count: int) -> Tensor:
    if len(ends) != 2:
        raise ConfigError(key, ends, "must be two numbers, of the first and the last step")
    return torch.linspace(ends[0], ends[1], count, dtype=torch.float64)

"""Masking with a growing Gaussian hole, round or along a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, NoiseLevel, NonNegative, Positive
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.corruptions.shapes import SHAPES, distance_to_middle
from ldae.diffusion.corruptions.tables import Table, quantize_8_bit
from ldae.diffusion.schedules import NoiseSchedule


@dataclass(frozen=True)
class Placed(State):
    """Position of the hole.

    Attributes:
        centre: (B, 2) int64, row and column; -1 is one pixel outside.
    """

    centre: Tensor


@dataclass(frozen=True)
class Shaped(State):
    """Hole along a shape.

    Attributes:
        r2: (B, n, n) int64, squared distance of each pixel to the middle of the shape, rounded.
        last: (B,) int64, the step at which the hole covers the shape; it does not grow further.
        shape: (B, n, n) bool, true where nothing is kept from step `last` on.
    """

    r2: Tensor
    last: Tensor
    shape: Tensor


class Mask(Corruption):
    """x_t = x0 prod_i (1 - exp(-r^2 / (2 beta_i^2))) over i <= t, beta_i = first + step i (arXiv 2208.09392).

    r is the distance to the centre in pixels. Masked pixels are 0, mid-grey. Along a shape, r is the distance to its
    middle (`distance_to_middle`), so that the hole of a disc, or of a single pixel, is the published one.

    Args:
        schedule: gives T.
        image_shape: (C, n, n).
        first, step: beta_i, a standard deviation in pixels.
        centred: the centre is pixel (n / 2 - 1, n / 2 - 1); else it is uniform on -1..n-1 in each axis.
        discrete: quantise the network's input to 8 bits.
        shapes: holes of training images: round, as published, or along random `strokes` or `boxes`.
    """

    pixel_only = True

    def __init__(
        self,
        schedule: NoiseSchedule,
        image_shape: tuple[int, int, int],
        first: Positive,
        step: NonNegative,
        centred: bool = False,
        discrete: bool = False,
        shapes: Literal["round", "strokes", "boxes"] = "round",
    ):
        if centred and shapes != "round":
            raise ConfigError("centred", True, f"is for round holes; use centred=false with shapes={shapes}")
        self.n, self.centred, self.discrete, self.shapes = image_shape[-1], centred, discrete, shapes
        beta = first + step * torch.arange(schedule.T, dtype=torch.float64)
        self.kept = Table(holes(beta, reach(self.n) if centred else self.n).cumprod(0))  # (T, r^2)

    def draw(self, x0: Tensor, rng: BatchGenerator) -> Placed | Shaped:
        """Draw the hole of each image: its centre, or its shape."""
        if self.shapes != "round":
            return self.along(SHAPES[self.shapes](len(x0), self.n, rng), grows=True)
        if self.centred:
            return Placed(centre=middle(x0, self.n))
        return Placed(centre=rng.integers(self.n + 1, 2 * len(x0)).reshape(-1, 2) - 1)

    def along(self, shape: Tensor, grows: bool = False) -> Shaped:
        """Return the state of holes along shapes.

        The hole covers a shape at the first step that keeps less than 1/255 of each of its pixels, and there keeps
        nothing of them; if there is no such step, at the last one.

        Args:
            shape: (B, n, n) bool, true where pixels are missing.
            grows: the hole grows on when it has covered the shape, to the last step: for training.
        """
        table = self.kept.on(shape.device)  # (T, r^2)
        r = distance_to_middle(shape)
        r2 = (r**2).round().long().clamp(max=table.shape[1] - 1)
        edge = torch.where(shape, r2, 0).amax((1, 2))  # (B,)
        end = len(table) - 1
        if grows:
            return Shaped(r2, torch.full_like(edge, end), torch.zeros_like(shape))
        return Shaped(r2, (table[:, edge] >= 1 / 255).sum(0).clamp(max=end), shape)

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images with a hole of the width of t."""
        if isinstance(state, Shaped):
            kept = self.kept.on(x0.device)[torch.minimum(level.t, state.last)[:, None, None], state.r2]  # (B, n, n)
            covered = state.shape & (level.t >= state.last)[:, None, None]
            return x0 * kept.masked_fill(covered, 0)[:, None]
        assert isinstance(state, Placed)
        return x0 * around(state.centre, self.kept, level.t, self.n)

    def corrupt(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images with a hole, quantised to 8 bits with `discrete`."""
        x_t = self.at(x0, level, state)
        return quantize_8_bit(x_t) if self.discrete else x_t


def holes(beta: Tensor, reach: int) -> Tensor:
    """Return 1 - exp(-r^2 / (2 beta^2)) for beta (S,) and every r^2 up to 2 reach^2: (S, 2 reach^2 + 1)."""
    r2 = torch.arange(2 * reach**2 + 1, dtype=beta.dtype)
    return -torch.expm1(-r2 / (2 * beta[:, None] ** 2))


def around(centre: Tensor, table: Table, t: Tensor, n: int) -> Tensor:
    """Evaluate rows `t` of a table over r^2 around centres (B, 2): (B, 1, n, n)."""
    row, column = ((torch.arange(n, device=t.device) - c[:, None]) ** 2 for c in centre.unbind(1))  # (B, n) each
    r2 = row[:, :, None] + column[:, None]  # (B, n, n)
    return table.on(t.device)[t[:, None, None], r2][:, None]


def middle(x0: Tensor, n: int) -> Tensor:
    """Return the centre of the published masks, (n / 2 - 1, n / 2 - 1), for each image: (B, 2)."""
    return torch.full((len(x0), 2), n // 2 - 1, device=x0.device)


def reach(n: int) -> int:
    """Return the largest distance of a pixel from the centre along one axis."""
    return n - n // 2

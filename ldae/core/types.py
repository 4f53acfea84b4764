"""The few types that every layer shares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `above` says that `low` itself is too low."""

    low: float | None = None
    high: float | None = None
    above: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}" if self.low is not None else ""
        high = f"at most {self.high:g}" if self.high is not None else ""
        return " and ".join(filter(None, [low, high]))


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Workers = Annotated[int, Range(low=0, high=max(64, 4 * (os.cpu_count() or 1)))]  # threads or processes of one machine
Positive = Annotated[float, Range(low=0, above=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]

EMPTY = "may be empty"  # marks a list that needs no entry; every other list needs one at least
Item = TypeVar("Item")
PossiblyEmpty = Annotated[list[Item], EMPTY]


@dataclass(frozen=True)
class Batch:
    """Images and what is known of them.

    Attributes:
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64 class indices; -1 for images without a class.
        index: (B,) int64 positions of the images in their set; names them in reports.
        latents: (B, ...) what a tokenizer stores of the images, where that is kept; `images` then has no pixels.
        masks: (B, 1, H, W) 0 or 1, figure or ground of every pixel, where the set has them.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    latents: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def split(self, parts: int) -> list[Batch]:
        """Return the rows in `parts` equal parts, in order."""
        size = len(self) // parts
        return [self.rows(part * size, (part + 1) * size) for part in range(parts)]

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` (exclusive)."""
        latents, masks = (None if x is None else x[start:stop] for x in (self.latents, self.masks))
        return Batch(self.images[start:stop], self.labels[start:stop], self.index[start:stop], latents, masks)


@dataclass(frozen=True)
class NoiseLevel:
    """How strongly each image of a batch is corrupted: z_t = gamma z0 + sigma eps.

    Attributes:
        t: (B,) int64 step in {0, ..., T-1}; what the network is conditioned on.
        gamma: (B,) float32 scale of the clean signal.
        sigma: (B,) float32 standard deviation of the noise.
    """

    t: Tensor
    gamma: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Cond:
    """What a denoiser is told beside the noisy input. l-DAE tells it nothing.

    Attributes:
        label: (B,) int64 classes in {0, ..., K-1}, K for a label that is not told, or None for no labels.
        image: (B, C, h, w) conditioning image in [-1, 1], at its own size, or None.
        features: (B, D, H, W) what an image encoder made of `image`, where that was worked out once for many steps.
    """

    label: Tensor | None = None
    image: Tensor | None = None
    features: Tensor | None = None


def expand(values: Tensor, like: Tensor) -> Tensor:
    """One number per image, (B,), shaped to multiply `like`, (B, ...). The only such broadcast."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


class BatchGenerator:
    """Random numbers for one batch, a function of the seeds alone.

    The batch is cut into equal slices, one seed each, so that the numbers of a slice are the
    same on one process and on many: slice k of the global batch has seed k wherever it is worked.

    Args:
        seeds: one seed per slice, in batch order.
        device: where the numbers are made. CPU and CUDA give different streams.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(s) for s in seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 of `shape`; its first axis is the batch."""
        draw = lambda size, g: torch.randn(size, generator=g, device=self.device)  # noqa: E731
        return self._sliced(shape, draw)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1) of `shape`; its first axis is the batch."""
        draw = lambda size, g: torch.rand(size, generator=g, device=self.device)  # noqa: E731
        return self._sliced(shape, draw)

    def integers(self, high: int, count: int) -> Tensor:
        """(count,) int64, uniform on {0, ..., high-1}."""
        draw = lambda size, g: torch.randint(high, size, generator=g, device=self.device)  # noqa: E731
        return self._sliced((count,), draw)

    def _sliced(self, shape: Sequence[int], draw: Any) -> Tensor:
        count, slices = shape[0], len(self.generators)
        if count % slices:
            raise ValueError(f"a batch of {count} cannot be cut into {slices} equal slices")
        size = (count // slices, *shape[1:])
        return torch.cat([draw(size, g) for g in self.generators])


# name -> (sum, count): what a player measured, in a form that adds up over batches and ranks.
Metrics = Mapping[str, tuple[Tensor, Tensor]]


class TrainableModule(Protocol):
    """What the engine trains: something with parameters and a loss. The engine knows no models."""

    @property
    def network(self) -> nn.Module:
        """What has the parameters."""

    def __call__(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """The loss to minimise (a float32 scalar, mean over the batch) and what was measured."""

    def is_active(self, step: int) -> bool:
        """Told the step before the loss is asked for: whether it learns at this step."""

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        """What was drawn for each image (its noise level), for a report on a failed step."""

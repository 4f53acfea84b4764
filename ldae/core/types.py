"""Types that every layer uses: ranges of numbers, batches, noise levels, conditions, trainable modules."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Range:
    """Interval of valid numbers.

    Attributes:
        low, high: bounds; None for no bound.
        excludes_low: whether `low` itself is invalid.
    """

    low: float | None = None
    high: float | None = None
    excludes_low: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.excludes_low and value == self.low)):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.excludes_low else 'at least'} {self.low:g}" if self.low is not None else ""
        high = f"at most {self.high:g}" if self.high is not None else ""
        return " and ".join(filter(None, [low, high]))


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Workers = Annotated[int, Range(low=0, high=max(64, 4 * (os.cpu_count() or 1)))]  # threads or processes of one machine
Positive = Annotated[float, Range(low=0, excludes_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]

ALLOW_EMPTY = "may be empty"  # annotation of a list that may be empty; every other list needs an entry
Item = TypeVar("Item")
PossiblyEmpty = Annotated[list[Item], ALLOW_EMPTY]


@dataclass(frozen=True)
class Batch:
    """Images with their labels, indices and, if the data set has them, latents or masks.

    Attributes:
        images: (B, 3, H, W) float in [0, 1]; (B, 3, 0, 0) where there are latents.
        labels: (B,) int64 class indices; -1 for images without a class.
        index: (B,) int64 positions of the images in the full data set.
        latents: (B, ...) cached latents of the images, or None.
        masks: (B, K, H, W) segmentation masks, or None: 1 for foreground and 0 for background where K = 1, else one-hot
            classes, all 0 for pixels without a class.
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
        """Return the rows `start` to `stop` (exclusive)."""
        latents, masks = (None if x is None else x[start:stop] for x in (self.latents, self.masks))
        return Batch(self.images[start:stop], self.labels[start:stop], self.index[start:stop], latents, masks)


@dataclass(frozen=True)
class NoiseLevel:
    """Noise level of each image of a batch: z_t = gamma z0 + sigma eps.

    Levels of their own for the tokens of an image (`timesteps=per_token`) are (B, 1, h, w) in place of (B,). To a
    network, (1,) is the level of all images.

    Attributes:
        t: (B,) int64 timestep in {0, ..., T-1}, on which the network is conditioned.
        gamma: (B,) float32 scale of the clean signal.
        sigma: (B,) float32 standard deviation of the noise.
    """

    t: Tensor
    gamma: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Cond:
    """Conditions of a denoiser in addition to the timestep; l-DAE has none.

    Attributes:
        label: (B,) int64 classes in {0, ..., K-1}, K for the null class, or None.
        image: (B, C, h, w) conditioning image in [-1, 1], at its own resolution, or None.
        features: (B, D, H, W) features of `image`, precomputed once for all sampling steps, or None.
    """

    label: Tensor | None = None
    image: Tensor | None = None
    features: Tensor | None = None


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one number per image, (B,), to (B, 1, ..., 1), so that it broadcasts over `like`, (B, ...).

    Numbers that have as many axes as `like` stay as they are.
    """
    return values if values.ndim == like.ndim else values.reshape(-1, *(1,) * (like.ndim - 1))


class BatchGenerator:
    """Random numbers of one batch, a function of the seeds alone.

    The batch consists of equal slices, each with a seed of its own. Slice k of the global batch has the same numbers
    on one process and on many.

    Args:
        seeds: one seed per slice, in batch order.
        device: device of the numbers. CPU and CUDA give different numbers for a seed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(s) for s in seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal float32 numbers of `shape`, whose first axis is the batch."""
        draw = lambda size, g: torch.randn(size, generator=g, device=self.device)  # noqa: E731
        return self._sliced(shape, draw)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return float32 numbers of `shape`, uniform on [0, 1); the first axis is the batch."""
        draw = lambda size, g: torch.rand(size, generator=g, device=self.device)  # noqa: E731
        return self._sliced(shape, draw)

    def integers(self, high: int, count: int) -> Tensor:
        """Return (count,) int64 numbers, uniform on {0, ..., high-1}."""
        draw = lambda size, g: torch.randint(high, size, generator=g, device=self.device)  # noqa: E731
        return self._sliced((count,), draw)

    def _sliced(self, shape: Sequence[int], draw: Any) -> Tensor:
        count, slices = shape[0], len(self.generators)
        if count % slices:
            raise ValueError(f"a batch of {count} images cannot be divided into {slices} equal slices")
        size = (count // slices, *shape[1:])
        return torch.cat([draw(size, g) for g in self.generators])


# name -> (sum, count) of a metric, a form that adds up over batches and ranks
Metrics = Mapping[str, tuple[Tensor, Tensor]]


class TrainableModule(Protocol):
    """Network with a loss: the interface between the engine and an objective."""

    @property
    def network(self) -> nn.Module:
        """Return the module whose parameters are trained."""

    def __call__(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the loss to minimise (a float32 scalar, mean over the batch) and the metrics of the batch."""

    def is_active(self, step: int) -> bool:
        """Return whether this module is updated at `step`; the trainer calls it before the loss."""

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        """Return the random numbers of each image, e.g. its noise level, for the report on a failed step."""

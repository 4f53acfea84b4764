"""What every task promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.core.types import Batch, BatchGenerator, Cond


class Task(ABC):
    """batch -> (x0, cond).

    Attributes:
        classes: how many classes the denoiser can be told; 0 if it is told none.
        image_channels: channels of the image that the denoiser is given (`cond.image`); 0 if it is given none.
        channels: of x0.
    """

    classes: int = 0
    image_channels: int = 0
    channels: int = 3

    @abstractmethod
    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """x0 (B, channels, H, W) in [-1, 1] and what the denoiser is told."""

    def in_training(self, cond: Cond, rng: BatchGenerator) -> Cond:
        """What the denoiser is told in training, where a part of it may be withheld or disturbed at random. All as it
        is, by default."""
        return cond

    def reading(self, images: Tensor) -> tuple[Tensor, Cond]:
        """What a network that is read for features is shown of images alone, (B, 3, H, W) in [0, 1]: x0 and cond.

        By default the images, and nothing is told.
        """
        return 2 * images - 1, Cond()

"""What every task promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.types import Batch, Cond, Draws


class Task(ABC):
    """batch -> (x0, cond).

    Attributes:
        classes: how many classes the denoiser can be told; 0 if it is told none.
        image_channels: channels of the image that it is conditioned on (`Cond.image`); 0 if there is none.
    """

    classes: int = 0
    image_channels: int = 0

    @abstractmethod
    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """x0 (B, 3, H, W) in [-1, 1] and what the denoiser is told."""

    def dropped(self, cond: Cond, draws: Draws) -> Cond:
        """What the denoiser is told in training, where a part of it may be withheld at random. All, by default."""
        return cond

"""Interface of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.core.types import Batch, BatchGenerator, Cond


class Task(ABC):
    """Map from a batch to (x0, cond).

    Attributes:
        classes: number of classes that the denoiser is conditioned on; 0 for none.
        image_channels: channels of the conditioning image (`cond.image`); 0 for none.
        channels: of x0.
        x0_is_image: whether x0 is 2 image - 1.
    """

    classes: int = 0
    image_channels: int = 0
    channels: int = 3
    x0_is_image: bool = False

    @abstractmethod
    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """Return x0, (B, channels, H, W) in [-1, 1], and the condition of the denoiser."""

    def augment_cond(self, cond: Cond, rng: BatchGenerator) -> Cond:
        """Return the condition with the augmentations of training, such as dropped labels; by default unchanged."""
        return cond

    def from_images(self, images: Tensor) -> tuple[Tensor, Cond]:
        """Return x0 and cond of images alone, (B, 3, H, W) in [0, 1], for feature extraction.

        By default x0 is the image, and cond is empty.
        """
        return 2 * images - 1, Cond()

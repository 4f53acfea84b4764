"""Segmentation by diffusion (SegDiff, arXiv 2112.00390)."""

from __future__ import annotations

from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, Cond, Count
from ldae.tasks.base import Task


class Segmentation(Task):
    """x0 = 2 mask - 1, conditioned on the image (arXiv 2112.00390).

    The paper's masks have one channel, of the foreground. Masks of K classes are one-hot, with K channels; a pixel
    without a class is -1 in all of them.

    Args:
        classes: K; 1 for foreground and background.
    """

    image_channels = 3

    def __init__(self, classes: Count = 1):
        self.channels = classes

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """Return x0, (B, K, H, W) of -1 or 1, and the image as condition.

        Raises:
            ConfigError: the data set has no masks, or masks of another number of classes.
        """
        if batch.masks is None:
            raise ConfigError(
                "task", type(self).__name__, "needs images with masks; use data=horses or data=segmentation"
            )
        if batch.masks.shape[1] != self.channels:
            message = f"is not the number of classes of the masks, {batch.masks.shape[1]} (data.classes)"
            raise ConfigError("task.classes", self.channels, message)
        return 2 * batch.masks - 1, Cond(image=2 * batch.images - 1)

    def from_images(self, images: Tensor) -> tuple[Tensor, Cond]:
        """Return x0 = 0, midway between the values of a mask, and the images as condition."""
        return images.new_zeros(images.shape[0], self.channels, *images.shape[2:]), Cond(image=2 * images - 1)

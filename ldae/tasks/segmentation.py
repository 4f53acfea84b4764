"""Segmentation by diffusion (SegDiff, arXiv 2112.00390)."""

from __future__ import annotations

from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, Cond
from ldae.tasks.base import Task


class Segmentation(Task):
    """x0 = 2 mask - 1, one channel, conditioned on the image (arXiv 2112.00390)."""

    image_channels = 3
    channels = 1

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """Return x0, (B, 1, H, W) of -1 or 1, and the image as condition.

        Raises:
            ConfigError: the data set has no masks.
        """
        if batch.masks is None:
            raise ConfigError(
                "task", type(self).__name__, "needs images with masks; use data=horses or data=segmentation"
            )
        return 2 * batch.masks - 1, Cond(image=2 * batch.images - 1)

    def from_images(self, images: Tensor) -> tuple[Tensor, Cond]:
        """Return x0 = 0, midway between foreground and background, and the images as condition."""
        return images.new_zeros(images.shape[0], 1, *images.shape[2:]), Cond(image=2 * images - 1)

"""Figure and ground told apart (SegDiff, arXiv 2112.00390)."""

from __future__ import annotations

from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, Cond
from ldae.tasks.base import Task


class Segmentation(Task):
    """x0 = 2 mask - 1, one channel; the denoiser is given the image (arXiv 2112.00390)."""

    image_channels = 3
    channels = 1

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """x0 (B, 1, H, W), -1 or 1, and the image.

        Raises:
            ConfigError: the data set has no masks.
        """
        if batch.masks is None:
            raise ConfigError(
                "task", type(self).__name__, "needs images with masks; use data=horses or data=segmentation"
            )
        return 2 * batch.masks - 1, Cond(image=2 * batch.images - 1)

    def reading(self, images: Tensor) -> tuple[Tensor, Cond]:
        """No mask is known, so 0 everywhere, half-way between figure and ground; and the images."""
        return images.new_zeros(images.shape[0], 1, *images.shape[2:]), Cond(image=2 * images - 1)

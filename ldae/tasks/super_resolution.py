"""Super-resolution (SR3, arXiv 2104.07636)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond, Count, NonNegative, expand
from ldae.tasks.base import Task


class SuperResolution(Task):
    """x0 = 2 image - 1, conditioned on the image at 1/factor of its size.

    In training the small image may be blurred by a 3 x 3 Gaussian whose sigma is drawn for each image, so that a stage
    of a cascade tolerates the errors of the previous one. The paper gives no strength; later cascades use sigma in
    0.4..0.6 (arXiv 2106.15282).

    Args:
        factor: ratio of the sides of large and small images.
        size: side of the large images, in pixels; a multiple of factor.
        blur_low, blur_high: bounds of sigma in pixels of the small image; 0 and 0 for no blur.

    Raises:
        ConfigError: the factor does not divide the size, or blur_low exceeds blur_high.
    """

    image_channels = 3
    x0_is_image = True

    def __init__(self, factor: Count, size: Count, blur_low: NonNegative = 0.0, blur_high: NonNegative = 0.0):
        if size % factor:
            raise ConfigError("factor", factor, f"does not divide the image, {size} pixels (data.size)")
        if blur_low > blur_high:
            raise ConfigError("blur_low", blur_low, f"exceeds blur_high={blur_high:g}")
        self.factor, self.size, self.blur = factor, size, (blur_low, blur_high)

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return self.from_images(batch.images)

    def from_images(self, images: Tensor) -> tuple[Tensor, Cond]:
        """Return x0 and the downsampled images as condition, of images (B, 3, H, W) in [0, 1]."""
        return 2 * images - 1, Cond(image=2 * downsample(images, self.factor) - 1)

    def augment_cond(self, cond: Cond, rng: BatchGenerator) -> Cond:
        """Blur the small image by a random sigma in [blur_low, blur_high]."""
        low, high = self.blur
        if not high:
            return cond
        assert cond.image is not None
        sigma = low + (high - low) * rng.uniform((len(cond.image),))  # (B,)
        return replace(cond, image=blur(cond.image, sigma))


def downsample(images: Tensor, factor: int) -> Tensor:
    """Downsample images by a factor: antialiased bicubic (a = -1/2), clipped to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1]; factor divides H and W.

    Returns:
        (B, C, H / factor, W / factor) in [0, 1].
    """
    H, W = images.shape[2:]
    small = F.interpolate(images, (H // factor, W // factor), mode="bicubic", antialias=True)
    return small.clamp(0, 1)


def upsample(low: Tensor, size: int) -> Tensor:
    """Upsample square images (B, C, h, h) to (B, C, size, size), bicubic (a = -1/2), unclipped."""
    return F.interpolate(low, (size, size), mode="bicubic", antialias=True)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own sigma, 3 x 3 weights of sum 1, borders replicated.

    Args:
        images: (B, C, H, W), of any range.
        sigma: (B,) >= 0, in pixels.
    """
    side = expand(torch.exp(-0.5 / sigma**2), images)  # neighbours of a centre of 1; 0 for sigma = 0
    x = F.pad(images, (1, 1, 1, 1), mode="replicate")
    x = (side * (x[:, :, :-2] + x[:, :, 2:]) + x[:, :, 1:-1]) / (1 + 2 * side)
    return (side * (x[..., :-2] + x[..., 2:]) + x[..., 1:-1]) / (1 + 2 * side)

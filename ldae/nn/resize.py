"""Images at another size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError


def enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image at a size that is no smaller, by bicubic interpolation; as it is where it has that size.

    Keys' kernel with a = -1/2, which image libraries and MATLAB use. In torch that is the one that comes with
    `antialias`; there is nothing to smooth when an image grows, and without it a is -3/4.

    Args:
        image: (B, C, h, w).
        size: (H, W).

    Returns:
        (B, C, H, W); may leave the image's range by a little.

    Raises:
        ConfigError: the image is larger than that.
    """
    if tuple(image.shape[2:]) == tuple(size):
        return image
    if image.shape[2] > size[0] or image.shape[3] > size[1]:
        raise ConfigError("image", tuple(image.shape[2:]), f"is larger than the {size[0]} x {size[1]} it goes with")
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)

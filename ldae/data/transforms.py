"""Augmentations: a crop box and a flip for each image, as pure functions of uniform numbers.

The same box is cropped either from tensors (small images, a whole batch at once, on the training device) or from a
decoded file (in a worker).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.core.types import Fraction, Natural, Positive


class Augment(ABC):
    """Base class of augmentations.

    Attributes:
        n: number of uniform numbers per image.
        supports_files: whether it works on files of any size, not only on images of one size in memory.
        is_exact: whether crops of files are resized by Pillow, bit-equal to images in memory; torch is faster.
        keeps_values: whether it moves pixels without changing their values, so that it works on uint8.
    """

    n = 0
    supports_files = True
    is_exact = True
    keeps_values = True

    def boxes(self, u: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Return crop boxes (top, left, height, width) in whole pixels, (B, 4) float64: the largest centred squares.

        Args:
            u: (B, n) uniform on [0, 1).
            height, width: (B,) sizes of the images.
        """
        side = torch.minimum(height, width).double()
        return torch.stack([(height - side) // 2, (width - side) // 2, side, side], dim=1)

    def flips(self, u: Tensor) -> Tensor:
        """Return whether each image is flipped, (B,) bool."""
        return torch.zeros(len(u), dtype=torch.bool, device=u.device)

    def finish(self, pixels: Tensor, u: Tensor) -> Tensor:
        """Return an image, (3, H, W) uint8, after the steps that follow crop, resize and flip.

        Args:
            pixels: (3, H, W) uint8 after crop, resize and flip.
            u: (n,) uniform on [0, 1).
        """
        return pixels

    @abstractmethod
    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Augment images of one size, (B, C, H, W) -> (B, C, H, W).

        Args:
            images: (B, 3 or 4, H, W) in [0, 1], or uint8 if it keeps values; a fourth channel is the mask.
            u: (B, n) uniform on [0, 1).
        """


class Centre(Augment):
    """Centre crop without a flip."""

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return images


class Flip(Augment):
    """Centre crop, flipped with probability `flip`."""

    n = 1

    def __init__(self, flip: Fraction = 0.5):
        self.flip = flip

    def flips(self, u: Tensor) -> Tensor:
        """Return whether each image is flipped, (B,) bool."""
        return u[:, 0] < self.flip

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return flip_images(images, self.flips(u))


class PadCrop(Flip):
    """Random crop of the image padded by `pad` black pixels, and a random flip, as is usual for CIFAR.

    The shift is uniform on {-pad, ..., pad} in each direction.
    """

    n = 3
    supports_files = False

    def __init__(self, pad: Natural = 4, flip: Fraction = 0.5):
        super().__init__(flip)
        self.pad = pad

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        _, C, H, W = images.shape
        shift = (u[:, 1:3] * (2 * self.pad + 1)).long()  # (B, 2) in {0, ..., 2 pad}
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        rows = shift[:, :1] + torch.arange(H, device=u.device)  # (B, H)
        columns = shift[:, 1:] + torch.arange(W, device=u.device)  # (B, W)
        columns = torch.where(self.flips(u)[:, None], columns.flip(1), columns)
        position = (rows * padded.shape[3])[:, :, None] + columns[:, None]  # (B, H, W) in a padded channel
        return padded.flatten(2).gather(2, position.flatten(1)[:, None].expand(-1, C, -1)).reshape(images.shape)


class RandomResizedCrop(Flip):
    """Random box of the image, resized: area `low` to `high`, aspect ratio 3/4 to 4/3 (arXiv 1409.4842).

    As in torchvision: ten attempts at a box that fits, log-uniform ratio, whole pixels; else the centre.

    Args:
        low, high: bounds of the area, as fractions of the image.
        flip: probability of a flip.
    """

    TRIES = 10
    n = 1 + 4 * TRIES
    is_exact = keeps_values = False

    def __init__(self, low: Positive = 0.2, high: Positive = 1.0, flip: Fraction = 0.5):
        super().__init__(flip)
        self.low, self.high = low, high

    def boxes(self, u: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Return random crop boxes, (B, 4) float64: the first of ten that fits, else the largest centred square."""
        tries = u[:, 1:].double().reshape(len(u), self.TRIES, 4)
        H, W = height[:, None].double(), width[:, None].double()
        area = H * W * (self.low + (self.high - self.low) * tries[..., 0])
        ratio = torch.exp((2 * tries[..., 1] - 1) * math.log(4 / 3))
        w, h = (area * ratio).sqrt().round().clamp(min=1), (area / ratio).sqrt().round().clamp(min=1)
        top, left = (tries[..., 2] * (H - h + 1)).floor(), (tries[..., 3] * (W - w + 1)).floor()
        fits = (w <= W) & (h <= H)  # (B, TRIES)
        first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 4)
        chosen = torch.stack([top, left, h, w], dim=-1).gather(1, first)[:, 0]  # (B, 4)
        return torch.where(fits.any(1)[:, None], chosen, super().boxes(u, height, width))

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        B, _, H, W = images.shape
        size = torch.full((B,), 1, device=u.device)
        return flip_images(batched_resized_crop(images, self.boxes(u, size * H, size * W)), self.flips(u))


def flip_images(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Flip the images of (B, C, H, W) for which `is_flipped`, (B,) bool, holds, left to right."""
    return torch.where(is_flipped[:, None, None, None], images.flip(3), images)


def batched_resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each image and resize it to the image's size: antialiased bicubic (a = -1/2), clamped to [0, 1].

    It takes two matrix products for the whole batch, and equals torchvision's resized_crop with antialias.

    Args:
        images: (B, C, H, W) in [0, 1].
        boxes: (B, 4) top, left, height, width in pixels.
    """
    rows = _bicubic(boxes[:, 0], boxes[:, 2], images.shape[2]).to(images.dtype)  # (B, H, H)
    columns = _bicubic(boxes[:, 1], boxes[:, 3], images.shape[3]).to(images.dtype)  # (B, W, W)
    return (rows[:, None] @ images @ columns[:, None].transpose(-2, -1)).clamp(0, 1)


def _bicubic(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the weights that resample [start, start + length) of `size` pixels to `size`, (B, size, size) float32."""
    pixel = torch.arange(size, device=start.device, dtype=torch.float64)
    ratio = (length.double() / size)[:, None, None]  # input pixels for one output pixel
    centre = start.double()[:, None, None] + (pixel[None, :, None] + 0.5) * ratio
    apart = (pixel + 0.5 - centre).div_(ratio.clamp(min=1)).abs_()  # (B, size out, size in)
    x = apart.float()  # the subtraction above needs float64; the polynomial does not
    near = (1.5 * x).sub_(2.5).mul_(x).mul_(x).add_(1)
    far = (-0.5 * x).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    weights = torch.where(x < 1, near, far).mul_(x < 2)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # (B, size)
    weights = weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(-1, keepdim=True))

"""One image file to RGB pixels. Pillow decodes: torchvision's decoder crashes on malformed PNGs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldae.data.sources import Source, opened

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class BadImage(Exception):
    """A file that is no readable image; the text says why."""


def read_rgb(source: Source, max_pixels: int) -> Image.Image:
    """The first frame of an image file as RGB, upright.

    EXIF orientation is applied where it can be read. Transparency is dropped. 16-bit and float images are scaled by
    their range.

    Args:
        max_pixels: width x height above which the file is refused, before it is decoded.

    Raises:
        BadImage: truncated, empty, not an image, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; ours is exact
            with Image.open(opened(source)) as image:
                if image.width * image.height > max_pixels:
                    raise BadImage(f"{image.width} x {image.height} exceeds data.max_pixels={max_pixels}")
                image.load()
                with contextlib.suppress(Exception):  # the pixels are whole, and what says how to hold them is not
                    ImageOps.exif_transpose(image, in_place=True)
                return _rgb(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds, some of them undocumented
        raise BadImage(f"{type(error).__name__}: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit and float grey values to 0..255, by the range that their kind spans."""
    values = np.nan_to_num(values.astype(np.float64))
    if values.min() < 0 or values.max() > 65535:
        low, high = values.min(), values.max()
    else:
        low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if values.max() <= top)
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def read_mask(path: Path, max_pixels: int) -> Image.Image:
    """A figure-ground mask, 255 where any channel is 128 or more and else 0 (mode L).

    Args, Raises: as read_rgb.
    """
    figure = np.asarray(read_rgb(path, max_pixels)).max(-1) >= 128
    return Image.fromarray(figure.astype(np.uint8) * 255)


def centre_square(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The largest centred square, resized to size x size (bicubic, antialiased, unless given another)."""
    side = min(image.size)
    image = _cropped(image, ((image.height - side) // 2, (image.width - side) // 2, side, side))
    return image if image.size == (size, size) else image.resize((size, size), resampling)


def cut_and_resized(image: Image.Image, box: Sequence[int], size: int, exact: bool) -> Tensor:
    """The box (top, left, height, width) of an RGB image, resized: (3, size, size) uint8, bicubic and antialiased.

    Cut first: the filter does not reach beyond the box.

    Args:
        exact: by Pillow, as `centre_square`; else by torch's kernel for bytes, which takes a fraction of the time and
            is a grey level off here and there.
    """
    image = _cropped(image, box)
    if exact and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)  # channels last in memory: that kernel wants it
    if image.size == (size, size):
        return pixels
    return torch.nn.functional.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0]


def _cropped(image: Image.Image, box: Sequence[int]) -> Image.Image:
    top, left, height, width = box
    if (top, left, height, width) == (0, 0, image.height, image.width):
        return image
    return image.crop((left, top, left + width, top + height))

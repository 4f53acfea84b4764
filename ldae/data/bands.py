"""Conversion of the bands of an image file to 8-bit RGB, scaled by bit depth and never by the maximum of the image."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldae.core.errors import ConfigError

# tags of TIFF 6.0, and GDAL's tag for the value of pixels without data
BITS, PHOTOMETRIC, SAMPLES, EXTRA, SAMPLE_FORMAT = 258, 262, 277, 338, 339
HEIGHT, STRIP_ROWS, STRIP_OFFSETS, STRIP_BYTES, PLANAR, NODATA = 257, 278, 273, 279, 284, 42113
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}  # photometric interpretation -> number of colour bands
ALPHA = (1, 2)  # values of ExtraSamples that mean transparency


class BadImage(Exception):
    """A file is not a readable image; the message is the reason."""


@dataclass(frozen=True)
class Bands:
    """Mapping from the bands and values of a file to red, green and blue.

    Attributes:
        channels: indices, from 0, of the three bands for red, green and blue, or of one for grey. None accepts grey
            and colour images only, and drops their transparency.
        range: (low, high), the values that become black and white in files of more than 8 bits; values outside are
            clipped. None stands for 0 to 2^bits - 1 of unsigned integers up to 16 bits, and 0 to 1 of floats.

    Raises:
        ConfigError: the channels are not one or three, or the range is empty.
    """

    channels: tuple[int, ...] | None = None
    range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and (len(self.channels) not in (1, 3) or min(self.channels) < 0):
            raise ConfigError("channels", list(self.channels), "must be one band (grey) or three, each from 0")
        if self.range is not None and (len(self.range) != 2 or not self.range[0] < self.range[1]):
            raise ConfigError("range", list(self.range), "must be [LOW, HIGH] with LOW below HIGH")

    @property
    def key(self) -> list[Any]:
        """Return the part of a cache key that depends on the bands: empty for the defaults."""
        return [] if self == Bands() else [self.channels, self.range]

    def select(self, values: np.ndarray) -> np.ndarray:
        """Return the chosen bands of (H, W, C) values, (H, W, 1 or 3).

        Raises:
            BadImage: the file has fewer bands.
        """
        if self.channels is None:
            return values
        if max(self.channels) >= values.shape[-1]:
            raise BadImage(f"has {values.shape[-1]} bands, fewer than data.channels={list(self.channels)} names")
        return values[..., list(self.channels)]

    def to_uint8(self, values: np.ndarray, bits: int | None = None) -> np.ndarray:
        """Return values of any type as uint8, on the scale of `range` or of their type.

        Args:
            values: array of any shape.
            bits: bit depth of unsigned integers if lower than that of their type.

        Raises:
            BadImage: a value is NaN or infinite, or the type has no usual scale and `range` is not set.
        """
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            raise BadImage(f"holds {values[~finite].flat[0]}, which is no colour")
        if values.dtype == np.uint8 and bits in (None, 8):
            return values
        low, high = self.range or _default_range(values, bits)
        scaled = (values.astype(np.float64) - low) / (high - low) * 255
        return np.round(scaled.clip(0, 255)).astype(np.uint8)


def _default_range(values: np.ndarray, bits: int | None) -> tuple[float, float]:
    if values.dtype == bool:
        return 0.0, 1.0
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 0.0, 2.0 ** (bits or 8 * values.dtype.itemsize) - 1
    if values.dtype.kind != "f":
        raise BadImage(
            f"{values.dtype} pixels ({values.min()} to {values.max()}) have no usual scale; give "
            "data.range=[LOW,HIGH], the values that are black and white"
        )
    if values.min() < 0 or values.max() > 1:
        out = float(values.max() if values.max() > 1 else values.min())
        raise BadImage(
            f"{values.dtype} pixels reach {out:g}, where 0 is black and 1 is white; give data.range=[LOW,HIGH], "
            "the values that are black and white"
        )
    return 0.0, 1.0


def check_nodata(values: np.ndarray, nodata: Any) -> None:
    """Refuse an image with a pixel whose bands all have the nodata value of its file.

    Args:
        values: (H, W, C) values.
        nodata: text of GDAL's nodata tag, or None.

    Raises:
        BadImage: there is such a pixel.
    """
    try:
        missing = values.dtype.type(float(str(nodata).strip("\0 ")))
    except (ValueError, OverflowError):
        return
    if (values == missing).all(-1).any():
        raise BadImage(f"has pixels without data (its nodata value is {str(nodata).strip()})")


class TiffLayout:
    """Pixel layout of a TIFF file, from its tags.

    Args:
        tags: number of a tag -> value.
    """

    def __init__(self, tags: Mapping[int, Any]):
        self.tags = tags
        self.samples = int(tags.get(SAMPLES, 1))
        self.bits = max(_as_tuple(tags.get(BITS, 1)))
        self.extra = _as_tuple(tags.get(EXTRA, ()))

    @property
    def is_colour(self) -> bool:
        """Return whether the bands are grey or colour, with or without transparency."""
        colours = COLOURS.get(self.tags.get(PHOTOMETRIC, 0), 3 if self.samples > 1 else 1)
        alpha = len(self.extra) == 1 and self.extra[0] in ALPHA
        return self.samples == colours + alpha

    @property
    def is_unsigned(self) -> bool:
        """Return whether the values are unsigned integers."""
        return set(_as_tuple(self.tags.get(SAMPLE_FORMAT, 1))) <= {1, 4}

    def check(self, bands: Bands) -> None:
        """Refuse a file whose bands are ambiguous or whose strips are incomplete.

        Raises:
            BadImage: there are more bands than colours and none is chosen, or strips are missing.
        """
        if bands.channels is None and not self.is_colour:
            choices = "data.channels=[RED,GREEN,BLUE] or [BAND]" if self.samples > 2 else "data.channels=[BAND]"
            raise BadImage(
                f"has {self.samples} bands that are not grey or red, green and blue; give {choices}, counted from 0"
            )
        if STRIP_OFFSETS in self.tags and HEIGHT in self.tags:
            rows, height = self.tags.get(STRIP_ROWS, 2**32 - 1), int(self.tags[HEIGHT])
            planes = self.samples if self.tags.get(PLANAR, 1) == 2 else 1
            count = -(-height // min(int(rows), height)) * planes
            sizes = _as_tuple(self.tags.get(STRIP_BYTES, (1,) * count))
            present = min(len(_as_tuple(self.tags[STRIP_OFFSETS])), sum(size > 0 for size in sizes))
            if present < count:
                raise BadImage(f"ends early: {present} of its {count} strips are there")


def read_tiff(content: bytes, max_pixels: int, bands: Bands, deep: bool = False) -> tuple[np.ndarray, int]:
    """Decode the first image of a TIFF file with any number of bands of any type.

    Args:
        content: bytes of the file.
        max_pixels: width x height above which the image is refused.
        bands: bands to select, and their range.
        deep: whether to refuse 8-bit files, which Pillow reads unless they are damaged.

    Returns:
        The chosen bands, (H, W, 1 or 3) uint8, and the EXIF orientation.

    Raises:
        BadImage: the image is too large, damaged, or its values cannot be converted.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        if page.imagewidth * page.imagelength > max_pixels:
            raise BadImage(f"{page.imagewidth} x {page.imagelength} exceeds data.max_pixels={max_pixels}")
        tags = {tag.code: tag.value for tag in page.tags}
        layout = TiffLayout(tags)
        layout.check(bands)
        if layout.samples * page.imagewidth * page.imagelength > 16 * max_pixels or page.imagedepth > 1:
            raise BadImage(f"{page.shape} numbers are more than a picture has")
        _check_whole(page, len(content))
        if deep and page.dtype == np.uint8:
            raise BadImage("is a TIFF that Pillow cannot identify")
        values = page.asarray()
    values = np.atleast_3d(values if page.axes[0] != "S" else np.moveaxis(values, 0, -1))
    if values.ndim != 3:
        raise BadImage(f"{page.axes} axes are not those of a picture")
    chosen = bands.select(values if bands.channels is not None else values[..., :3])
    check_nodata(chosen, tags.get(NODATA))
    return bands.to_uint8(chosen, layout.bits if chosen.dtype.kind == "u" else None), int(tags.get(274, 1))


def _check_whole(page: Any, size: int) -> None:
    """Refuse a page with missing pixels, which tifffile would fill without an error.

    Args:
        page: page of tifffile.
        size: bytes of the file.

    Raises:
        BadImage: there are no pixels, some lie beyond the end of the file, or their type is not that of an image.
    """
    if not page.size or page.dtype is None or page.dtype.kind not in "uif":
        raise BadImage(f"{page.shape} pixels of type {page.dtype} are no picture")
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    is_uncompressed = page.compression == 1
    if any(offset + count > size or not count for offset, count in segments) or (
        is_uncompressed and sum(count for _, count in segments) < page.nbytes
    ):
        raise BadImage("ends early: some of its pixels are not there")


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, Sequence) and not isinstance(value, str) else (int(value),)

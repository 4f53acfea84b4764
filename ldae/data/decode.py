"""One image file to RGB pixels. Pillow decodes: torchvision's decoder crashes on malformed PNGs."""

from __future__ import annotations

import contextlib
import errno
import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldae.core.errors import StorageError
from ldae.data.bands import NODATA, BadImage, Bands, TiffLayout, check_nodata, read_tiff
from ldae.data.sources import Member, Source

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274
PLAIN = Bands()


def read_rgb(source: Source, max_pixels: int, bands: Bands = PLAIN) -> Image.Image:
    """Decode the first frame of an image file as RGB, upright.

    EXIF orientation is applied where it can be read. Transparency is dropped. Numbers of more than 8 bits are scaled by
    their type (see `Bands`).

    Args:
        max_pixels: width x height above which the file is refused, before it is decoded.
        bands: which bands are taken, and their range.

    Raises:
        BadImage: truncated, empty, not an image, too large, or without a colour that is known.
        StorageError: the disk or the network fails.
    """
    content = read_bytes(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; ours is exact
            return _decoded(content, max_pixels, bands)
    except BadImage:
        raise
    except Exception as error:  # the decoders raise many kinds, some of them undocumented
        raise BadImage(f"{type(error).__name__}: {error}") from None


# of one file, not of the disk: the file counts as unreadable
OF_A_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def read_bytes(source: Source) -> bytes:
    """Read the bytes of an image.

    Raises:
        BadImage: the file is gone or may not be read.
        StorageError: the disk or the network fails.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read() if isinstance(source, Member) else source.read_bytes()
    except OSError as error:
        if error.errno in OF_A_FILE:
            raise BadImage(f"{type(error).__name__}: {error}") from None
        path = source.file if isinstance(source, Member) else source
        raise StorageError(
            f"reading {path} failed ({error.strerror}); check its disk or network, and run the same command again"
        ) from None


def _decoded(content: bytes, max_pixels: int, bands: Bands) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:4] not in TIFF:
            raise
        pixels, orientation = read_tiff(content, max_pixels, bands, deep=bands.channels is None)
        return _upright(pixels, orientation)
    with image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width} x {image.height} exceeds data.max_pixels={max_pixels}")
        layout = TiffLayout(dict(image.tag_v2)) if image.format == "TIFF" else None  # type: ignore[attr-defined]
        if layout is not None:
            layout.check(bands)
            if _reduces(image, layout, bands):
                return _of_tiff(content, max_pixels, bands)
        elif bands.range is not None and image.format == "PNG" and content[24] == 16 and content[25] in (2, 6):
            raise BadImage("colours of 16 bits in a PNG are read as 8 bits, without data.range; save it as TIFF")
        image.load()
        if image.format == "PNG":
            _check_rows(content, image)
        with contextlib.suppress(Exception):  # the pixels are whole, and what says how to hold them is not
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image, layout, bands)


def _reduces(image: Image.Image, layout: TiffLayout, bands: Bands) -> bool:
    """Return whether Pillow would drop bands of a TIFF that are asked for, or bits that are to be scaled."""
    bits = layout.bits > 8 and layout.samples > 1
    return (bits and (bands != PLAIN or NODATA in layout.tags)) or (
        bands.channels is not None and (layout.samples != len(image.getbands()) or image.mode in ("P", "YCbCr", "LAB"))
    )


def _of_tiff(content: bytes, max_pixels: int, bands: Bands) -> Image.Image:
    return _upright(*read_tiff(content, max_pixels, bands))


def _upright(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, layout: TiffLayout | None, bands: Bands) -> Image.Image:
    deep = image.mode.startswith("I") or image.mode == "F"
    if deep or bands.channels is not None or (layout is not None and NODATA in layout.tags):
        plain = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode in ("P", "PA") else image
        values = np.atleast_3d(_numbers(plain, layout))
        check_nodata(bands.taken(values), layout.tags.get(NODATA) if layout else None)
        if deep or bands.channels is not None:
            bits = layout.bits if layout and layout.bits < 16 and values.dtype == np.uint16 else None
            taken = bands.as_bytes(bands.taken(values), bits)
            return Image.fromarray(taken if taken.shape[-1] == 3 else taken[..., 0]).convert("RGB")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _numbers(image: Image.Image, layout: TiffLayout | None) -> np.ndarray:
    """Return a picture's numbers in the type that its file has."""
    values = np.asarray(image)
    if values.dtype.kind == "u":
        return values.astype(values.dtype.newbyteorder("="))
    if image.mode == "I" and (layout is None or (layout.is_unsigned and layout.bits <= 16)):
        return values.astype(np.uint16)  # Pillow holds the 16 bits of PNG and PGM so, and scales PGM's to them
    return values.view(np.uint32) if image.mode == "I" and layout is not None and layout.is_unsigned else values


def _check_rows(content: bytes, image: Image.Image) -> None:
    """Refuse a PNG whose stream of pixels ends early, though its file is whole: Pillow leaves the rest black.

    Raises:
        BadImage: rows are missing.
    """
    last = image.crop((0, image.height - 1, image.width, image.height)).getextrema()
    black = not np.any(last)
    if not black and content[28] == 0:  # byte 28: interlaced
        return
    stream, at, count = zlib.decompressobj(), 8, 0
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"IDAT":
            rest = content[at + 8 : at + 8 + length]
            while rest:
                count += len(stream.decompress(rest, 1 << 20))
                rest = stream.unconsumed_tail
        at += 12 + length
    count += len(stream.flush())
    if count < (expected := _png_bytes(content)):
        raise BadImage(f"ends early: {count} of its {expected} bytes of pixels are there")


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def _png_bytes(content: bytes) -> int:
    """Return how many bytes the pixels of a PNG have before compression, a filter's byte before each row."""
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    bits = content[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[content[25]]
    passes = PASSES if content[28] else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)


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

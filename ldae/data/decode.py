"""Decoding of image files to RGB pixels by Pillow and libjpeg-turbo; torchvision's crashes on malformed PNGs."""

from __future__ import annotations

import contextlib
import errno
import io
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldae.core.errors import StorageError
from ldae.data.bands import NODATA, BadImage, Bands, TiffLayout, check_nodata, read_tiff
from ldae.data.jpeg import ORIENTATION, decode_jpeg

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DEFAULT_BANDS = Bands()


@dataclass(frozen=True)
class FileSlice:
    """Range of bytes in a file, e.g. an image in a tar file.

    Attributes:
        file: path of the file.
        offset, size: of the range, in bytes.
    """

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes of the range.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Source = Path | FileSlice | bytes


def locate_file(root: Path, name: str) -> Source:
    """Return the path of the file `name` below `root`."""
    return root / name


def read_rgb(source: Source, max_pixels: int, bands: Bands = DEFAULT_BANDS) -> Image.Image:
    """Decode the first frame of an image file as RGB, in its EXIF orientation if that is readable.

    Transparency is dropped. Values of more than 8 bits are scaled by their type (see `Bands`).

    Args:
        source: path, slice of a file, or bytes.
        max_pixels: width x height above which the file is refused, before it is decoded.
        bands: bands to select, and their range.

    Raises:
        BadImage: the file is truncated, empty, not an image, too large, or its bands are not colours.
        StorageError: the disk or the network fails.
    """
    content = read_bytes(source)
    if not content:
        raise BadImage("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; `max_pixels` refuses them
            return _decode(content, max_pixels, bands)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("is no image that can be decoded") from None
    except Exception as error:  # the decoders raise many types, some of them undocumented
        raise BadImage(f"{type(error).__name__}: {error}") from None


def read_pixels(source: Source, max_pixels: int, bands: Bands = DEFAULT_BANDS) -> np.ndarray:
    """Return the pixels of `read_rgb`, (H, W, 3) uint8; those of most JPEG files without Pillow, which is slower.

    Args, Raises: as read_rgb.
    """
    content = read_bytes(source)
    pixels = decode_jpeg(content, max_pixels) if bands.channels is None else None
    return np.array(read_rgb(content, max_pixels, bands)) if pixels is None else pixels


# errors of one file, which counts as unreadable; all others are errors of the disk
FILE_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def read_bytes(source: Source) -> bytes:
    """Return the bytes of an image.

    Raises:
        BadImage: the file is missing or its permissions forbid reading.
        StorageError: the disk or the network fails.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read() if isinstance(source, FileSlice) else source.read_bytes()
    except OSError as error:
        if error.errno in FILE_ERRORS:
            raise BadImage(f"{type(error).__name__}: {error}") from None
        path = source.file if isinstance(source, FileSlice) else source
        raise StorageError(
            f"reading {path} failed ({error.strerror}); check its disk or network, and run the same command again"
        ) from None


def _decode(content: bytes, max_pixels: int, bands: Bands) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:4] not in TIFF:
            raise
        pixels, orientation = read_tiff(content, max_pixels, bands, deep=bands.channels is None)
        return _apply_orientation(pixels, orientation)
    with image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width} x {image.height} exceeds data.max_pixels={max_pixels}")
        layout = TiffLayout(dict(image.tag_v2)) if image.format == "TIFF" else None  # type: ignore[attr-defined]
        if layout is not None:
            layout.check(bands)
            if _loses_data(image, layout, bands):
                return _apply_orientation(*read_tiff(content, max_pixels, bands))
        elif bands.range is not None and image.format == "PNG" and content[24] == 16 and content[25] in (2, 6):
            raise BadImage("colours of 16 bits in a PNG are read as 8 bits, without data.range; save it as TIFF")
        image.load()
        if image.format == "PNG":
            _check_png_rows(content, image)
        with contextlib.suppress(Exception):  # a damaged EXIF block leaves the pixels intact
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, layout, bands)


def _loses_data(image: Image.Image, layout: TiffLayout, bands: Bands) -> bool:
    """Return whether Pillow would drop selected bands of a TIFF, or bits that `bands` scales."""
    loses_bits = layout.bits > 8 and layout.samples > 1
    return (loses_bits and (bands != DEFAULT_BANDS or NODATA in layout.tags)) or (
        bands.channels is not None and (layout.samples != len(image.getbands()) or image.mode in ("P", "YCbCr", "LAB"))
    )


def _apply_orientation(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, layout: TiffLayout | None, bands: Bands) -> Image.Image:
    deep = image.mode.startswith("I") or image.mode == "F"
    if deep or bands.channels is not None or (layout is not None and NODATA in layout.tags):
        plain = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode in ("P", "PA") else image
        values = np.atleast_3d(_native_values(plain, layout))
        check_nodata(bands.select(values), layout.tags.get(NODATA) if layout else None)
        if deep or bands.channels is not None:
            bits = layout.bits if layout and layout.bits < 16 and values.dtype == np.uint16 else None
            pixels = bands.to_uint8(bands.select(values), bits)
            return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _native_values(image: Image.Image, layout: TiffLayout | None) -> np.ndarray:
    """Return the values of an image in the type of its file."""
    values = np.asarray(image)
    if values.dtype.kind == "u":
        return values.astype(values.dtype.newbyteorder("="))
    if image.mode == "I" and (layout is None or (layout.is_unsigned and layout.bits <= 16)):
        return values.astype(np.uint16)  # Pillow stores the 16 bits of PNG and PGM as int32, PGM's scaled to 16 bits
    return values.view(np.uint32) if image.mode == "I" and layout is not None and layout.is_unsigned else values


def _check_png_rows(content: bytes, image: Image.Image) -> None:
    """Refuse a PNG whose pixel stream ends early in a complete file; Pillow would leave the missing rows black.

    Raises:
        BadImage: rows are missing.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height)).getextrema()
    if np.any(last_row) and content[28] == 0:  # byte 28: interlaced
        return
    stream, offset, count = zlib.decompressobj(), 8, 0
    while offset + 8 <= len(content):
        length, chunk = int.from_bytes(content[offset : offset + 4], "big"), content[offset + 4 : offset + 8]
        if chunk == b"IDAT":
            rest = content[offset + 8 : offset + 8 + length]
            while rest:
                count += len(stream.decompress(rest, 1 << 20))
                rest = stream.unconsumed_tail
        offset += 12 + length
    count += len(stream.flush())
    if count < (expected := _png_data_size(content)):
        raise BadImage(f"ends early: {count} of its {expected} bytes of pixels are there")


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def _png_data_size(content: bytes) -> int:
    """Return the number of uncompressed bytes of a PNG's pixels, with the filter byte before each row."""
    width, height = (int.from_bytes(content[offset : offset + 4], "big") for offset in (16, 20))
    bits = content[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[content[25]]
    passes = PASSES if content[28] else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(h * (1 + (w * bits + 7) // 8) for w, h in sizes if w > 0 and h > 0)


def read_mask(path: Path, max_pixels: int) -> Image.Image:
    """Return a segmentation mask (mode L), 255 where any channel is 128 or more and 0 elsewhere.

    Args, Raises: as read_rgb.
    """
    figure = np.asarray(read_rgb(path, max_pixels)).max(-1) >= 128
    return Image.fromarray(figure.astype(np.uint8) * 255)


def read_class_indices(path: Path, max_pixels: int) -> Image.Image:
    """Return a segmentation mask of several classes (mode L): the index of each pixel's class.

    Args:
        path: a grey or palette image, whose values or palette entries are the indices.
        max_pixels: as for read_rgb.

    Raises:
        BadImage: it is unreadable, or in colours.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"{image.width} x {image.height} exceeds data.max_pixels={max_pixels}")
            if image.mode not in ("P", "L", "1"):
                raise BadImage(f"has the mode {image.mode}; save class indices as a grey or palette PNG")
            return Image.fromarray(np.asarray(image).astype(np.uint8))
    except BadImage:
        raise
    except Exception as error:  # the decoders raise many types, some of them undocumented
        raise BadImage(f"{type(error).__name__}: {error}") from None


def centre_crop(image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Return the largest centred square, resized to size x size (antialiased)."""
    top, left, side, _ = centre_box(image.height, image.width)
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), resampling)


def centre_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest centred square of an image: top, left, height, width in pixels."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def crop_and_resize(pixels: np.ndarray, box: Sequence[int], size: int, exact: bool) -> Tensor:
    """Return a box of an image, resized (bicubic, antialiased), as (3, size, size) uint8.

    The crop precedes the resize, so that the filter sees no pixel outside of the box.

    Args:
        pixels: (H, W, 3) uint8.
        box: top, left, height, width in pixels.
        size: side of the result in pixels.
        exact: whether Pillow resizes, as in `centre_crop`; torch's uint8 kernel is several times faster and differs
            by a grey level in some pixels.
    """
    top, left, height, width = box
    cropped = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    if exact and (height, width) != (size, size):
        cropped = np.array(Image.fromarray(cropped).resize((size, size), Image.Resampling.BICUBIC))
    tensor = torch.from_numpy(cropped).movedim(-1, 0)  # channels last in memory, as the uint8 kernel requires
    if exact or (height, width) == (size, size):
        return tensor
    return torch.nn.functional.interpolate(tensor[None], (size, size), mode="bicubic", antialias=True)[0]

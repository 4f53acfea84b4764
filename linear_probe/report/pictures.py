"""Pictures inside a page: data URIs, small enough that dozens of them make a light page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from linear_probe.rows import Row

PAGE_BYTES = 480_000  # of all pictures; base64 adds a third
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
QUALITIES = (88, 75, 60)
SMALLEST = 400  # pixels: a wider picture may be halved
LEVEL = re.compile(r"denoised t=(\d+)")


@dataclass(frozen=True)
class Picture:
    """A picture in a page: `uri` holds all of it; width and height in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """The pictures of one cell.

    Attributes:
        strip: noise level t -> what was restored from it, by rising t.
        others: what each shows -> the picture.
        missing: what each would show -> why it cannot be read.
    """

    strip: Mapping[int, Picture]
    others: Mapping[str, Picture]
    missing: Mapping[str, str] = field(default_factory=dict)


def albums(rows: Sequence[Row], root: Path) -> list[Album]:
    """Return the pictures of every row, together at most about PAGE_BYTES, and which cannot be read."""
    share = PAGE_BYTES // max(1, sum(len(row.pictures) for row in rows))
    return [_album(row, root, share) for row in rows]


class UnreadablePictureError(ValueError):
    """A picture's file is absent or damaged."""


def inlined(path: Path, most: int) -> Picture:
    """The file as it is if it has at most `most` bytes, else as WebP that fits: of less quality, then of half the size.

    Raises:
        UnreadablePictureError: it is absent or is no picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind, size = image.format or "", image.size
            if len(data) > most or kind not in MIME:
                data, kind = _webp(image.convert("RGB"), most), "WEBP"
            else:
                image.load()  # raises if it is cut short
    except FileNotFoundError:
        raise UnreadablePictureError("is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UnreadablePictureError("cannot be read") from None
    return Picture(f"data:{MIME[kind]};base64,{base64.b64encode(data).decode()}", *size)


def _webp(image: Image.Image, most: int) -> bytes:
    """The best that fits; the smallest where none does."""
    data = b""
    for size in [image.size, *([(image.width // 2, image.height // 2)] if image.width > SMALLEST else [])]:
        sized = image.resize(size, Image.Resampling.BOX) if size != image.size else image
        for quality in QUALITIES:
            out = io.BytesIO()
            sized.save(out, "WEBP", quality=quality, method=4)
            data = out.getvalue()
            if len(data) <= most:
                return data
    return data


def _album(row: Row, root: Path, most: int) -> Album:
    pictures, missing = dict[str, Picture](), dict[str, str]()
    for name, file in row.pictures.items():
        try:
            pictures[name] = inlined(root / file, most)
        except UnreadablePictureError as error:
            missing[name] = f"{file} {error}"
    levels = {int(m[1]): p for name, p in pictures.items() if (m := LEVEL.fullmatch(name))}
    others = {n: p for n, p in pictures.items() if not LEVEL.fullmatch(n)}
    return Album(dict(sorted(levels.items())), others, missing)

"""Pictures inside a page: data URIs, small enough that dozens of them make a light page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from linear_probe.report.contents import Unreportable
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
    """

    strip: Mapping[int, Picture]
    others: Mapping[str, Picture]


def albums(rows: Sequence[Row], root: Path) -> list[Album]:
    """The pictures of every row, together at most about PAGE_BYTES.

    Raises:
        Unreportable: a file is absent or is no picture.
    """
    share = PAGE_BYTES // max(1, sum(len(row.pictures) for row in rows))
    return [_album({name: inlined(root / file, share) for name, file in row.pictures.items()}) for row in rows]


def inlined(path: Path, most: int) -> Picture:
    """The file as it is if it has at most `most` bytes, else as WebP that fits: of less quality, then of half the size.

    Raises:
        Unreportable: it is absent or is no picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind, size = image.format or "", image.size
            if len(data) > most or kind not in MIME:
                data, kind = _webp(image.convert("RGB"), most), "WEBP"
            else:
                image.load()  # raises if it is cut short
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreportable(f"picture {path} cannot be read ({error}); draw it again or drop its row's entry") from None
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


def _album(pictures: Mapping[str, Picture]) -> Album:
    levels = {int(m[1]): p for name, p in pictures.items() if (m := LEVEL.fullmatch(name))}
    return Album(dict(sorted(levels.items())), {n: p for n, p in pictures.items() if not LEVEL.fullmatch(n)})

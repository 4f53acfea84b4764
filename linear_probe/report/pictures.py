"""Pictures of trials as data URIs, reduced in bytes so that a page with dozens of them stays small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from linear_probe.rows import Row

PAGE_BYTES = 480_000  # of all pictures; base64 adds a third
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
QUALITIES = (88, 75, 60)
SMALLEST = 400  # pixels: a wider picture may be halved
LEVEL = re.compile(r"denoised t=(\d+)(?: sigma=([\d.e+-]+))?")  # title of a picture of a noise level


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; width and height in pixels; its noise level in words where it is of one."""

    uri: str
    width: int
    height: int
    level: str = ""


@dataclass(frozen=True)
class Album:
    """The pictures of one trial.

    Attributes:
        denoised: noise level t -> images noised at t and denoised, by rising t.
        others: title -> picture.
        missing: title -> why the picture cannot be read.
    """

    denoised: Mapping[int, Picture]
    others: Mapping[str, Picture]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def middle(self) -> int:
        """Return the index of the noise level that is shown first: the middle one, neither clean nor all noise."""
        return len(self.denoised) // 2


def albums(rows: Sequence[Row], root: Path) -> list[Album]:
    """Return the pictures of every row, together at most about PAGE_BYTES.

    Args:
        rows: of the report.
        root: folder that their pictures are relative to.
    """
    max_bytes = PAGE_BYTES // max(1, sum(len(row.pictures) for row in rows))
    return [_album(row, root, max_bytes) for row in rows]


class UnreadablePictureError(ValueError):
    """A picture's file is absent or damaged."""


def load_picture(path: Path, max_bytes: int) -> Picture:
    """Read a picture, as it is if it fits into `max_bytes`, else as WebP: of less quality, then of half the size.

    Raises:
        UnreadablePictureError: the file is absent or is no picture.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            form, size = image.format or "", image.size
            if len(data) > max_bytes or form not in MIME:
                data, form = _webp(image.convert("RGB"), max_bytes), "WEBP"
            else:
                image.load()  # raises if it is cut short
    except FileNotFoundError:
        raise UnreadablePictureError("is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UnreadablePictureError("cannot be read") from None
    return Picture(f"data:{MIME[form]};base64,{base64.b64encode(data).decode()}", *size)


def _webp(image: Image.Image, max_bytes: int) -> bytes:
    """Return the best quality that fits; the smallest file where none does."""
    data = b""
    for size in [image.size, *([(image.width // 2, image.height // 2)] if image.width > SMALLEST else [])]:
        sized = image.resize(size, Image.Resampling.BOX) if size != image.size else image
        for quality in QUALITIES:
            out = io.BytesIO()
            sized.save(out, "WEBP", quality=quality, method=4)
            data = out.getvalue()
            if len(data) <= max_bytes:
                return data
    return data


def _album(row: Row, root: Path, max_bytes: int) -> Album:
    pictures, missing = dict[str, Picture](), dict[str, str]()
    for name, file in row.pictures.items():
        try:
            pictures[name] = load_picture(root / file, max_bytes)
        except UnreadablePictureError as error:
            missing[name] = f"{file} {error}"
    levels = {
        int(m[1]): replace(p, level=f"t = {m[1]}" + (f", σ = {m[2]}" if m[2] else ""))
        for name, p in pictures.items()
        if (m := LEVEL.fullmatch(name))
    }
    others = {n: p for n, p in pictures.items() if not LEVEL.fullmatch(n)}
    return Album(dict(sorted(levels.items())), others, missing)

"""A page for two-alternative forced choice between real and generated pictures, and the answers that it saves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldae.core.errors import ConfigError, DataError
from ldae.core.files import read_json

FORMAT = "ldae fool 1"
SIDES = ("left", "right")
SMOOTH = 128  # pixels; pictures that are less wide are enlarged without smoothing
LARGEST = 8  # times that a picture is enlarged at most; larger blocks hide what it shows


@dataclass(frozen=True)
class Pairs:
    """Pairs of a real and a generated picture.

    Attributes:
        real, fake: (N, H, W, 3) uint8.
        reference: (N, h, w, 3) uint8 pictures to show above the pairs, or None.
        real_side: (N,) 0 where the real picture is left, 1 where it is right; empty before `drawn`.

    Raises:
        DataError: the pictures have different sizes, or a pair shows one picture twice.
    """

    real: np.ndarray
    fake: np.ndarray
    reference: np.ndarray | None = None
    real_side: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.real.shape != self.fake.shape or self.real.shape[-1] != 3:
            raise DataError(f"real pictures {self.real.shape} and generated ones {self.fake.shape} differ in size")
        same = (self.real == self.fake).all((1, 2, 3))
        if same.any():
            raise DataError(f"the real and the generated picture of {same.sum()} pairs are the same; give other ones")

    def __len__(self) -> int:
        return len(self.real)

    def drawn(self, count: int, seed: int) -> Pairs:
        """Return `count` of the pairs, drawn without replacement, each with a random side.

        Raises:
            ConfigError: there are fewer pairs.
        """
        if count > len(self):
            raise ConfigError("pairs", count, f"exceeds the {len(self)} pairs that there are; give at most that")
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(self))[:count]
        reference = None if self.reference is None else self.reference[chosen]
        return Pairs(self.real[chosen], self.fake[chosen], reference, generator.integers(0, 2, count).tolist())


@dataclass(frozen=True)
class Answers:
    """Answers of one participant.

    Attributes:
        page: identifier of the page.
        participant: random identifier.
        fooled: for each answer, whether it names the generated picture as real.
    """

    page: str
    participant: str
    fooled: Sequence[bool]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return Wilson's score interval of the fool rate, in [0, 1] (Wilson 1927)."""
        from scipy.stats import binomtest

        limits = binomtest(int(sum(self.fooled)), len(self.fooled)).proportion_ci(level, method="wilson")
        return float(limits.low), float(limits.high)


def build_page(pairs: Pairs, seconds: float) -> str:
    """Return the page as HTML; the same pairs give the same page.

    The pictures are PNG files in data URIs, encoded alike, without names. Which of them are real is in the page as a
    text that only `read_answers` reads, and that a participant cannot see.

    Args:
        pairs: of `Pairs.drawn`.
        seconds: time for which a pair is shown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    left_right = [
        (r, f) if not side else (f, r) for r, f, side in zip(pairs.real, pairs.fake, pairs.real_side, strict=True)
    ]
    references = [None] * len(pairs) if pairs.reference is None else list(pairs.reference)
    images = [
        {"left": data_uri(a), "right": data_uri(b), "reference": None if c is None else data_uri(c)}
        for (a, b), c in zip(left_right, references, strict=True)
    ]
    page = hashlib.sha256(json.dumps([images, seconds]).encode()).hexdigest()[:16]
    content = {
        "format": FORMAT,
        "page": page,
        "key": _seal({"page": page, "sides": "".join(map(str, pairs.real_side))}, page),
        "seconds": seconds,
        "pairs": images,
    }
    environment = Environment(
        loader=PackageLoader("ldae.app.sampling"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("fool.html").render(
        content=content,
        count=len(pairs),
        seconds=f"{seconds:g}",
        pixelated=pairs.real.shape[2] < SMOOTH,
        widest=2 * LARGEST * pairs.real.shape[2],
        has_reference=pairs.reference is not None,
    )


def data_uri(image: np.ndarray) -> str:
    """Return an image (H, W, 3) uint8 as the data URI of a PNG without metadata."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_answers(path: Path) -> Answers:
    """Read the answers that a page saved.

    Raises:
        DataError: the file is no such file, is damaged, or has no answer.
    """
    values = read_json(path)
    try:
        if values["format"] != FORMAT:
            raise DataError(f"{path} has the format {values['format']!r}; this version reads {FORMAT!r}")
        sides = _unseal(values["key"], values["page"])
        answers = {int(one["pair"]): SIDES.index(one["choice"]) for one in values["answers"]}
        fooled = [choice != int(sides[pair]) for pair, choice in sorted(answers.items())]
        if len(answers) != len(values["answers"]) or min(answers, default=0) < 0:
            raise ValueError("a pair is answered twice")
        page, participant = str(values["page"]), str(values["participant"])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path} holds no answers of a page of ldae fool, or is damaged ({error!r})") from None
    if not fooled:
        raise DataError(f"{path} has no answer yet; save it after the first pair")
    return Answers(page, participant, fooled)


def _seal(value: Any, page: str) -> str:
    """Return a value as text that nobody reads at sight: it hides the key from participants, not from an attacker."""
    content = json.dumps(value).encode()
    return base64.b64encode(bytes(a ^ b for a, b in zip(content, _stream(page, len(content)), strict=True))).decode()


def _unseal(text: str, page: str) -> str:
    """Return the sides of the real pictures.

    Raises:
        ValueError: the text is damaged or of another page.
    """
    content = base64.b64decode(text, validate=True)
    value = json.loads(bytes(a ^ b for a, b in zip(content, _stream(page, len(content)), strict=True)))
    if value["page"] != page:
        raise ValueError("the key is of another page")
    return str(value["sides"])


def _stream(page: str, length: int) -> bytes:
    return hashlib.shake_256(f"{FORMAT} {page}".encode()).digest(length)

"""Drawing: scales, ticks, and the few shapes that the plots are made of. Colours are classes of report.css."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 440  # of a plot, its own units: 13-unit text stays readable where a phone shows it at three quarters
LETTER = 6.6  # width of a letter of 12 units, about
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.8L4.6 3.4h-9.2z",
    "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L4.6-3.4h-9.2z",
    "M-4.5-1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
)


@dataclass(frozen=True)
class Scale:
    """Data to drawing: `low`..`high` onto `start`..`end`.

    Attributes:
        log2: along the logarithm; low and high are positive then.
    """

    low: float
    high: float
    start: float
    end: float
    log2: bool = False

    def __call__(self, value: float) -> float:
        of = math.log2 if self.log2 else float
        return self.start + (of(value) - of(self.low)) / (of(self.high) - of(self.low)) * (self.end - self.start)


def escape(text: object) -> str:
    """`text` inside HTML or SVG, attributes too."""
    return html.escape(str(text), quote=True)


def number(value: float) -> str:
    """At most one digit after the point: a coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside low..high, at most `most` of them."""
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def around(values: Iterable[float]) -> tuple[float, float]:
    """A range that holds all values with some air."""
    found = list(values)
    low, high = min(found), max(found)
    air = 0.08 * (high - low) or 1.0
    return low - air, high + air


def apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved as little as need be so that they are `gap` apart, inside low..high if they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    found = list(positions)
    floor = low
    for i in order:
        found[i] = floor = max(found[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        found[i] = ceiling = min(found[i], ceiling)
        ceiling -= gap
    return found


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "start") -> str:
    """A line of text; `anchor` says which of its ends (or its middle) is at x."""
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{number(x)}" y="{number(y)}"{attributes}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<path class="{kind}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>'


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    """Straight lines through all points."""
    return f'<path class="{kind}" d="M{"L".join(f"{number(x)} {number(y)}" for x, y in points)}"/>'


def mark(x: float, y: float, index: int, message: str = "") -> str:
    """The mark of the series `index`; what is `told` shows when it is pointed at."""
    title = f"<title>{escape(message)}</title>" if message else ""
    place = f"translate({number(x)} {number(y)})"
    return (
        f'<path class="mark s{index % len(MARKS)}" transform="{place}" d="{MARKS[index % len(MARKS)]}">{title}</path>'
    )


def rectangle(x: float, y: float, width: float, height: float, kind: str, message: str = "") -> str:
    """A filled box."""
    title = f"<title>{escape(message)}</title>" if message else ""
    box = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect class="{kind}" {box}>{title}</rect>' if title else f'<rect class="{kind}" {box}/>'


def shortened(content: str, width: float) -> str:
    """As much of it as `width` holds."""
    fits = int(width / LETTER)
    return content if len(content) <= fits else content[: max(1, fits - 1)] + "…"


def drawing(width: float, height: float, title: str, about: str, body: str) -> str:
    """A whole picture, with what readers who do not see it are told."""
    head = f"<title>{escape(title)}</title><desc>{escape(about)}</desc>"
    return f'<svg role="img" viewBox="0 0 {number(width)} {number(height)}">{head}{body}</svg>'

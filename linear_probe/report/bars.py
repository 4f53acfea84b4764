"""Horizontal bars, from zero: what each step of a path has, ours and the paper's on axes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linear_probe.report import svg
from linear_probe.report.svg import WIDTH, Scale

TOP, ROW, THICK, GAP = 34, 22, 14, 10


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: at its left.
        value: percent; None leaves the place empty.
        deviation: over seeds, None for one.
        kind: `cell`, or `beside` for baselines and floors.
    """

    name: str
    value: float | None
    deviation: float | None = None
    kind: str = "cell"


def bars(title: str, about: str, shown: Sequence[Bar], tone: str, letters: int) -> str:
    """The bars, one below the other, each with its value.

    Args:
        title, about: what it shows, in short and in full.
        shown: at least one with a value.
        tone: `ours` or `paper`, their colour.
        letters: room for names, the same in plots that stand beside each other.
    """
    gutter = min(172.0, svg.LETTER * letters + 10)
    most = max(b.value + (b.deviation or 0) for b in shown if b.value is not None)
    scale = Scale(0, most or 1, gutter, WIDTH - 50)
    tops = [TOP + ROW * i + GAP * (bar.kind == "beside") for i, bar in enumerate(shown)]
    bottom = tops[-1] + ROW
    parts = [svg.text(0, 18, title, "head")]
    parts += [_bar(bar, top, scale, tone) for bar, top in zip(shown, tops, strict=True)]
    parts.append(svg.line(gutter, TOP - 2, gutter, bottom, "axis"))
    return svg.drawing(WIDTH, bottom + 6, title, about, "".join(parts))


def _bar(bar: Bar, y: float, scale: Scale, tone: str) -> str:
    label = svg.text(scale.start - 8, y + 14, svg.shortened(bar.name, scale.start - 8), "label", "end")
    if bar.value is None:
        return label
    end, middle = scale(bar.value), y + 3 + THICK / 2
    kind = tone if bar.kind == "cell" else "beside"
    spread = "" if bar.deviation is None else f" ± {bar.deviation:.2f}"
    box = svg.rectangle(
        scale.start, y + 3, end - scale.start, THICK, f"bar {kind}", f"{bar.name}: {bar.value:.2f}{spread}"
    )
    whisker, edge = "", end
    if bar.deviation is not None:
        edge = scale(bar.value + bar.deviation)
        whisker = svg.line(scale(bar.value - bar.deviation), middle, edge, middle, "whisker")
    return label + box + whisker + svg.text(edge + 6, y + 14, f"{bar.value:.1f}", "tick")

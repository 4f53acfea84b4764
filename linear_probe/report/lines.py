"""Lines: accuracy along an axis that is a number, and noise schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from linear_probe.report import svg
from linear_probe.report.svg import WIDTH, Scale

TOP, BOTTOM, LEFT, PLOT = 34, 44, 46, 220  # margins, and the height of the plot itself
LEGEND = 18  # height of a line of the legend


@dataclass(frozen=True)
class Point:
    """A measurement: `deviation` is None for a single one."""

    x: float
    y: float
    deviation: float | None = None


@dataclass(frozen=True)
class Axis:
    """The quantity along x.

    Attributes:
        label: its name.
        log2: doubling is one step.
        values: where to put ticks; round numbers if empty.
    """

    label: str
    log2: bool = False
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Series:
    """One line: `tone` is the place of its colour and mark, the same in all plots of a grid."""

    name: str
    tone: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Frame:
    """The layout of one plot."""

    x: Scale
    y: Scale
    top: float


def lines(title: str, about: str, found: Mapping[str, Sequence[Point]], x: Axis, y_label: str, marks: bool) -> str:
    """One line for each series, named at its end and in the legend.

    Args:
        title, about: what it shows, in short and in full.
        found: name -> points by rising x; one without points keeps its colour for other plots, and is left out.
        x: the horizontal axis.
        y_label: of the vertical one.
        marks: whether each point has a mark, which tells its value.
    """
    series = [Series(name, tone, points) for tone, (name, points) in enumerate(found.items()) if points]
    legend, used = _legend(series)
    frame = _frame(series, x, TOP + used)
    parts = [svg.text(LEFT, 18, title, "head"), legend, _grid(frame, x, y_label)]
    parts += [_line(frame, s, x.label, marks) for s in series]
    parts.append(_end_labels(frame, series))
    return svg.drawing(WIDTH, frame.top + PLOT + BOTTOM, title, about, "".join(parts))


def _frame(series: Sequence[Series], x: Axis, top: float) -> Frame:
    points = [p for s in series for p in s.points]
    right = WIDTH - 16 - min(104, svg.LETTER * max(len(s.name) for s in series))
    spread = [v for p in points for v in (p.y - (p.deviation or 0), p.y + (p.deviation or 0))]
    xs = [*(p.x for p in points), *x.values]
    return Frame(Scale(min(xs), max(xs), LEFT + 10, right, x.log2), Scale(*svg.around(spread), top + PLOT, top), top)


def _legend(series: Sequence[Series]) -> tuple[str, float]:
    """The legend and its height: marks and names, in as many lines as they need."""
    parts, x, y = [], float(LEFT), TOP
    for s in series:
        width = svg.LETTER * len(s.name) + 30
        if x + width > WIDTH and x > LEFT:
            x, y = LEFT, y + LEGEND
        parts.append(svg.mark(x + 5, y + 2, s.tone) + svg.text(x + 15, y + 6, s.name, "small"))
        x += width
    return "".join(parts), y + LEGEND - TOP


def _grid(frame: Frame, x: Axis, y_label: str) -> str:
    left, right, bottom = LEFT, frame.x.end, frame.top + PLOT
    label = f"{x.label} (log scale)" if x.log2 else x.label
    parts = [svg.text((LEFT + right) / 2, bottom + 36, label, "small", "middle"), _vertical(y_label, bottom - PLOT / 2)]
    for value in svg.ticks(frame.y.low, frame.y.high):
        y = frame.y(value)
        parts += [svg.line(left, y, right, y, "grid"), svg.text(left - 6, y + 4, f"{value:g}", "tick", "end")]
    for value in x.values or svg.ticks(frame.x.low, frame.x.high):
        at = frame.x(value)
        parts += [
            svg.line(at, bottom, at, bottom + 4, "axis"),
            svg.text(at, bottom + 18, f"{value:g}", "tick", "middle"),
        ]
    return "".join([*parts, svg.line(left, bottom, right, bottom, "axis")])


def _vertical(label: str, y: float) -> str:
    return f'<g transform="translate(12 {svg.number(y)}) rotate(-90)">{svg.text(0, 0, label, "small", "middle")}</g>'


def _line(frame: Frame, s: Series, axis: str, marks: bool) -> str:
    places = [(frame.x(p.x), frame.y(p.y)) for p in s.points]
    parts = [svg.polyline(places, f"line s{s.tone % len(svg.MARKS)}")] if len(places) > 1 else []
    if marks:
        for (x, y), p in zip(places, s.points, strict=True):
            message = f"{s.name}, {axis} = {p.x:g}: {p.y:.2f}"
            if p.deviation is not None:
                parts.append(svg.line(x, frame.y(p.y - p.deviation), x, frame.y(p.y + p.deviation), "whisker"))
                message += f" ± {p.deviation:.2f}"
            parts.append(svg.mark(x, y, s.tone, message))
    return "".join(parts)


def _end_labels(frame: Frame, series: Sequence[Series]) -> str:
    """Each line's name at its last point's height, moved apart where lines end together."""
    places = svg.apart([frame.y(s.points[-1].y) + 4 for s in series], 14, frame.top + 4, frame.top + PLOT)
    room = WIDTH - frame.x.end - 9
    parts = []
    for s, y in zip(series, places, strict=True):
        last = s.points[-1]
        if last.x < frame.x.high:
            parts.append(svg.line(frame.x(last.x) + 6, frame.y(last.y), frame.x.end + 6, y - 4, "leader"))
        tone = f"label t{s.tone % len(svg.MARKS)}"
        parts.append(svg.text(frame.x.end + 9, y, svg.shortened(s.name, room), tone))
    return "".join(parts)

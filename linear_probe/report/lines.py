"""Draw lines of measurements with matplotlib, with error bars and a legend below."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from linear_probe.report.plotting import (
    LIGHT,
    LINE,
    LINE_STYLES,
    MARKERS,
    NO_REFERENCES,
    SERIES,
    SPREAD,
    TITLE,
    WIDTH,
    DataRow,
    Drawing,
    error_lengths,
    figure_style,
    finished,
    new_figure,
    with_error,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class Point:
    """A measurement.

    Attributes:
        x, y: place.
        deviation: standard deviation of y over seeds; None for one seed.
        interval: ends of an interval around y, drawn where there is no deviation; None for none.
    """

    x: float
    y: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class XAxis:
    """The horizontal axis of a line plot.

    Attributes:
        label: its name.
        log2: logarithmic, base 2.
        ticks: values with a tick; matplotlib's choice if empty.
    """

    label: str
    log2: bool = False
    ticks: Sequence[float] = ()


@figure_style()
def draw_lines(
    title: str,
    description: str,
    series: Mapping[str, Sequence[Point]],
    x: XAxis,
    y_label: str,
    markers: bool = True,
    references: Mapping[str, float] = NO_REFERENCES,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    unconnected: Collection[str] = (),
) -> Drawing:
    """Draw one line for each series, with error bars and a legend below.

    Args:
        title, description: text of the figure.
        series: name -> points by rising x; a series without points keeps its colour for other plots and is left out.
        x: the horizontal axis.
        y_label: of the vertical axis, with its unit.
        markers: mark each point; else the lines differ in their dashes.
        references: name -> a value that does not depend on x, drawn as a grey line.
        limits: ends of the vertical axis, for figures that are compared; those of the data if None.
        log: whether the vertical axis is logarithmic.
        unconnected: names of series whose points are not joined by a line.
    """
    figure = new_figure(WIDTH, LINE * wrap(title, TITLE).count("\n") + 2.5)
    axes = figure.subplots()
    tooltips, lines = {}, {}
    data: list[DataRow] = [["series", x.label, y_label, *SPREAD]]
    for i, (name, points) in enumerate(series.items()):
        if not points:
            continue
        style = _style(i, markers) | ({"linestyle": "none"} if name in unconnected else {})
        lines[name] = _draw_series(axes, points, style)
        lines[name].set_gid(f"series-{i}")
        if markers:
            values = (f"{x.label} = {p.x:g}: {with_error(p.y, p.deviation, p.interval)}" for p in points)
            tooltips[f"series-{i}"] = [f"{name}, {value}" for value in values]
        data += [[name, p.x, p.y, p.deviation, *(p.interval or (None, None))] for p in points]
    for i, (name, value) in enumerate(references.items()):
        grey: dict[str, Any] = {"color": LIGHT["muted"], "linestyle": LINE_STYLES[(i + 1) % len(LINE_STYLES)]}
        lines[f"{name}: {value:.1f}"] = axes.axhline(value, zorder=1, linewidth=1.0, **grey)
        data.append([name, None, value, None, None, None])
    if x.log2:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if x.ticks:
        axes.set_xticks(x.ticks, [f"{value:g}" for value in x.ticks])
    if log:
        axes.set_yscale("log")
        label_decades(axes)
    axes.set(xlabel=f"{x.label} (log scale)" if x.log2 else x.label, ylabel=y_label)
    if limits is not None:
        axes.set_ylim(limits)
    axes.grid(axis="y")
    _legend(figure, lines)
    drawing = finished(figure, title, description, tooltips, data)
    _thin_ticks(axes)
    return drawing


def _style(i: int, markers: bool) -> dict[str, Any]:
    """Return how the line of series `i` looks: a marker at each point, or else dashes of its own."""
    colour = SERIES[i % len(SERIES)]
    if not markers:
        return {"color": colour, "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}
    dashes = LINE_STYLES[i // len(MARKERS) % len(LINE_STYLES)]
    marker = {"marker": MARKERS[i % len(MARKERS)], "markeredgecolor": LIGHT["background"]}
    return {"color": colour, "linestyle": dashes, **marker}


def _draw_series(axes: Axes, points: Sequence[Point], style: Mapping[str, Any]) -> Line2D:
    """Draw points with their error bars, and return their line."""
    lengths = [error_lengths(p.y, p.deviation, p.interval) for p in points]
    none = (float("nan"), float("nan"))
    errors = list(zip(*(one or none for one in lengths), strict=True)) if any(lengths) else None
    drawn = axes.errorbar([p.x for p in points], [p.y for p in points], errors, elinewidth=0.9, capsize=2, **style)
    return drawn.lines[0]


def label_decades(axes: Axes) -> None:
    """Label a logarithmic axis by plain numbers, between the decades too where it spans less than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, lines: Mapping[str, Any]) -> None:
    """Add a legend below the axes with as many columns as fit, and make room for its rows."""
    for columns in range(len(lines), 0, -1):
        placeholders = [f"series {i}" for i in range(len(lines))]  # a name that begins with "_" would be left out
        legend = figure.legend(
            list(lines.values()), placeholders, loc="outside lower center", ncols=columns,
            handlelength=1.8, columnspacing=1.3, handletextpad=0.5, borderpad=0.1,
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), lines, strict=True):
            text.set_text(wrap(name, 46))
        # hinting makes text up to 7 % wider or narrower at another resolution
        if columns == 1 or legend.get_window_extent().width < 0.93 * figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def _thin_ticks(axes: Axes) -> None:
    """Hide the labels of the horizontal axis that would touch the label before them."""
    edge = -float("inf")
    for label in axes.get_xticklabels():
        box = label.get_window_extent()
        if box.x0 < edge + 2:
            label.set_visible(False)
        else:
            edge = box.x1

"""Draw bars and lines with matplotlib.

A figure is as wide as a column of a two-column paper and does not depend on the user's matplotlibrc. matplotlib is
imported when a figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.5  # inches: a column of a two-column paper
DPI = 200  # of PNG files
ROW = 0.19  # height of a bar, inches
LINE = 0.14  # height of a line of text, inches
TITLE = 42  # letters of a line of a title

COLORS = {  # role -> colour on a light and on a dark background
    "background": ("#ffffff", "#14171b"),
    "text": ("#1b1f24", "#e6e9ed"),
    "muted": ("#59626d", "#a1abb6"),
    "rule": ("#dfe3e8", "#2d333a"),
    "tint": ("#f4f6f8", "#1b2026"),
    "paper": ("#8a6d3b", "#cfae72"),
    "baseline": ("#a9b2bc", "#5b6570"),
    # the series: Okabe and Ito's palette, which colour-blind readers can tell apart
    "series-0": ("#0072b2", "#4fa8e0"),
    "series-1": ("#d55e00", "#f0884a"),
    "series-2": ("#009e73", "#35c69c"),
    "series-3": ("#cc79a7", "#e48cc3"),
    "series-4": ("#e69f00", "#f2b632"),
    "series-5": ("#56b4e9", "#a5dcfa"),
}
LIGHT = {role: light for role, (light, _) in COLORS.items()}
SERIES = [color for role, color in LIGHT.items() if role.startswith("series")]
MARKERS = ("o", "s", "^", "D", "v", "P")
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))

DataRow = Sequence["str | float | None"]  # of a figure's numbers
SPREAD = ("standard deviation", "interval low", "interval high")  # columns of a figure's numbers
NO_REFERENCES: Mapping[str, float] = MappingProxyType({})

STYLE = {
    "figure.facecolor": LIGHT["background"],
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "figure.titlesize": 8.5,
    "figure.titleweight": "bold",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": LIGHT["background"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 0.6,
    "text.color": LIGHT["text"],
    "text.parse_math": False,  # names are printed to the letter, dollars too
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "savefig.dpi": DPI,
    "svg.fonttype": "none",  # text can be selected, searched and read aloud
    "svg.hashsalt": "linear_probe",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3 fonts
}


@dataclass(frozen=True)
class Drawing:
    """A figure with its text alternative.

    Attributes:
        figure: matplotlib's figure.
        title: one line.
        description: what a reader sees in the figure, in sentences.
        tooltips: SVG id of an artist -> the text of each of its marks.
        data: the numbers that are drawn, a header and rows, for a CSV file; empty for none.
    """

    figure: Figure
    title: str
    description: str
    tooltips: Mapping[str, Sequence[str]] = field(default_factory=dict)
    data: Sequence[DataRow] = ()


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        name: label at its left.
        value: percent; None leaves the row empty.
        deviation: standard deviation over seeds, percentage points; None for one seed.
        is_baseline: stands below the trials, in grey.
        interval: ends of an interval around the value, percent, drawn where there is no deviation; None for none.
    """

    name: str
    value: float | None
    deviation: float | None = None
    is_baseline: bool = False
    interval: tuple[float, float] | None = None


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


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of all figures over matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def error_lengths(
    value: float, deviation: float | None, interval: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Return the lengths of an error bar below and above a value: one deviation, or to the interval's ends."""
    if deviation is not None:
        return deviation, deviation
    return None if interval is None else (max(0.0, value - interval[0]), max(0.0, interval[1] - value))


@figure_style()
def draw_bars(
    title: str,
    description: str,
    bars: Sequence[Bar],
    color: str,
    x_label: str = "top-1 accuracy (%)",
    longest: float | None = None,
) -> Drawing:
    """Draw horizontal bars from zero, with their values and error bars.

    Args:
        title, description: text of the figure.
        bars: from the top down; at least one with a value.
        color: role in COLORS of the bars that are no baselines.
        x_label: of the horizontal axis, with its unit.
        longest: end of the horizontal axis, for figures that are compared; the longest bar's end if None.
    """
    names = [wrap(bar.name, 26) for bar in bars]
    y, bottom = [], 0.0
    for previous, bar, name in zip([None, *bars], bars, names, strict=False):
        bottom += 0.5 * (bar.is_baseline and previous is not None and not previous.is_baseline)
        height = max(1.0, (0.3 + name.count("\n") + 1) * LINE * 0.85 / ROW)
        y.append(bottom + height / 2)
        bottom += height
    figure = new_figure(WIDTH, ROW * bottom + LINE * wrap(title, TITLE).count("\n") + 0.75)
    axes = figure.subplots()
    tooltips = {}
    ends: list[float] = []
    data: list[DataRow] = [["name", "value", *SPREAD]]
    for i, (bar, at) in enumerate(zip(bars, y, strict=True)):
        low, high = bar.interval or (None, None)
        data.append([bar.name, bar.value, bar.deviation, low, high])
        if bar.value is None:
            continue
        (patch,) = axes.barh(at, bar.value, 0.68, color=LIGHT["baseline" if bar.is_baseline else color])
        patch.set_gid(f"bar-{i}")
        tooltips[f"bar-{i}"] = [f"{bar.name}: {with_error(bar.value, bar.deviation, bar.interval)}"]
        below, above = error_lengths(bar.value, bar.deviation, bar.interval) or (None, 0.0)
        if below is not None:
            axes.errorbar(
                [bar.value], [at], xerr=[[below], [above]], fmt="none", ecolor=LIGHT["text"], elinewidth=0.9, capsize=2
            )
        ends.append(bar.value + above)
        text = with_deviation(bar.value, bar.deviation, 1)
        axes.annotate(text, (ends[-1], at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(y, names)
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["text"])
    axes.set(xlim=(0, 1.02 * (longest or max(ends)) or 1), ylim=(bottom, 0), xlabel=x_label)
    return finished(figure, title, description, tooltips, data)


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
    """
    figure = new_figure(WIDTH, LINE * wrap(title, TITLE).count("\n") + 2.5)
    axes = figure.subplots()
    tooltips, lines = {}, {}
    data: list[DataRow] = [["series", x.label, y_label, *SPREAD]]
    for i, (name, points) in enumerate(series.items()):
        if not points:
            continue
        gid = f"series-{i}"
        style: dict[str, Any] = {"color": SERIES[i % len(SERIES)]}
        if markers:
            style |= {"marker": MARKERS[i % len(MARKERS)], "markeredgecolor": LIGHT["background"]}
            style |= {"linestyle": LINE_STYLES[i // len(MARKERS) % len(LINE_STYLES)]}
            tooltips[gid] = [f"{name}, {x.label} = {p.x:g}: {with_error(p.y, p.deviation, p.interval)}" for p in points]
        else:
            style["linestyle"] = LINE_STYLES[i % len(LINE_STYLES)]
        lengths = [error_lengths(p.y, p.deviation, p.interval) for p in points]
        none = (float("nan"), float("nan"))
        errors = list(zip(*(one or none for one in lengths), strict=True)) if any(lengths) else None
        container = axes.errorbar(
            [p.x for p in points], [p.y for p in points], errors, elinewidth=0.9, capsize=2, **style
        )
        lines[name] = container.lines[0]
        lines[name].set_gid(gid)
        data += [[name, p.x, p.y, p.deviation, *(p.interval or (None, None))] for p in points]
    for i, (name, value) in enumerate(references.items()):
        style = {"color": LIGHT["muted"], "linewidth": 1.0, "linestyle": LINE_STYLES[(i + 1) % len(LINE_STYLES)]}
        lines[f"{name}: {value:.1f}"] = axes.axhline(value, zorder=1, **style)
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


def label_decades(axes: Axes) -> None:
    """Label a logarithmic axis by plain numbers, between the decades too where it spans less than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finished(
    figure: Figure,
    title: str,
    description: str,
    tooltips: Mapping[str, Sequence[str]],
    data: Sequence[DataRow],
) -> Drawing:
    """Add the title, fix the layout and return the drawing."""
    figure.suptitle(wrap(title, TITLE), x=0.012, ha="left")
    lay_out(figure)
    return Drawing(figure, title, description, tooltips, data)


def lay_out(figure: Figure) -> None:
    """Fix the layout, which is the same in every format then and is computed once."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


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


def with_deviation(value: float, deviation: float | None, digits: int) -> str:
    """Return `value`, or `value ± deviation` if there is one."""
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def with_error(value: float, deviation: float | None, interval: tuple[float, float] | None) -> str:
    """Return a value with two digits, and its deviation or else its interval where there is one."""
    if deviation is None and interval is not None:
        return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
    return with_deviation(value, deviation, 2)


def printable(text: str) -> str:
    """Return `text` with a space for each character that cannot be printed, which XML would refuse."""
    return "".join(c if c.isprintable() else " " for c in text)


def wrap(text: str, letters: int) -> str:
    """Return `text` in lines of at most `letters` characters; line ends that it has stay."""
    lines = (textwrap.wrap(printable(line), letters) or [""] for line in text.split("\n"))
    return "\n".join(line for several in lines for line in several)

"""Draw bars, lines and heat maps with matplotlib.

A figure is as wide as a column of a two-column paper and does not depend on the user's matplotlibrc. matplotlib is
imported when a figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.5  # inches: a column of a two-column paper
DPI = 200  # of PNG files
ROW, CELL = 0.19, 0.25  # height of a bar and of a cell of a heat map, inches
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
DARK_INK, LIGHT_INK = "#000000", "#fefefe"  # on cells of a heat map, which look the same on every background

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
    """

    figure: Figure
    title: str
    description: str
    tooltips: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        name: label at its left.
        value: percent; None leaves the row empty.
        deviation: standard deviation over seeds, percentage points; None for one seed.
        is_baseline: stands below the trials, in grey.
    """

    name: str
    value: float | None
    deviation: float | None = None
    is_baseline: bool = False


@dataclass(frozen=True)
class Point:
    """A measurement; `deviation` is the standard deviation of y over seeds, None for one seed."""

    x: float
    y: float
    deviation: float | None = None


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


@dataclass(frozen=True)
class HeatMap:
    """A table of accuracies.

    Attributes:
        title: above it.
        rows, columns: names of the rows (layers) and columns (noise levels).
        values: percent, a row after another; None where nothing was measured.
        chosen: (row, column) to frame.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    chosen: tuple[int, int] | None = None


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of all figures over matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


@figure_style()
def draw_bars(title: str, description: str, bars: Sequence[Bar], color: str) -> Drawing:
    """Draw horizontal bars from zero, with their values and error bars of one standard deviation.

    Args:
        title, description: text of the figure.
        bars: from the top down; at least one with a value.
        color: role in COLORS of the bars that are no baselines.
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
    for i, (bar, at) in enumerate(zip(bars, y, strict=True)):
        if bar.value is None:
            continue
        (patch,) = axes.barh(at, bar.value, 0.68, color=LIGHT["baseline" if bar.is_baseline else color])
        patch.set_gid(f"bar-{i}")
        tooltips[f"bar-{i}"] = [f"{bar.name}: {with_deviation(bar.value, bar.deviation, 2)}"]
        end, text = bar.value + (bar.deviation or 0), with_deviation(bar.value, bar.deviation, 1)
        axes.annotate(text, (end, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    whiskers = [
        (b.value, at, b.deviation)
        for b, at in zip(bars, y, strict=True)
        if b.value is not None and b.deviation is not None
    ]
    if whiskers:
        values, places, deviations = zip(*whiskers, strict=True)
        axes.errorbar(values, places, xerr=deviations, fmt="none", ecolor=LIGHT["text"], elinewidth=0.9, capsize=2)
    axes.set_yticks(y, names)
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["text"])
    largest = max(b.value + (b.deviation or 0) for b in bars if b.value is not None)
    axes.set(xlim=(0, 1.02 * largest or 1), ylim=(bottom, 0), xlabel="top-1 accuracy (%)")
    return finished(figure, title, description, tooltips)


@figure_style()
def draw_lines(
    title: str, description: str, series: Mapping[str, Sequence[Point]], x: XAxis, y_label: str, markers: bool = True
) -> Drawing:
    """Draw one line for each series, with error bars of one standard deviation and a legend below.

    Args:
        title, description: text of the figure.
        series: name -> points by rising x; a series without points keeps its colour for other plots and is left out.
        x: the horizontal axis.
        y_label: of the vertical axis, with its unit.
        markers: mark each point; else the lines differ in their dashes.
    """
    figure = new_figure(WIDTH, LINE * wrap(title, TITLE).count("\n") + 2.5)
    axes = figure.subplots()
    tooltips, lines = {}, {}
    for i, (name, points) in enumerate(series.items()):
        if not points:
            continue
        gid = f"series-{i}"
        style: dict[str, Any] = {"color": SERIES[i % len(SERIES)]}
        if markers:
            style |= {"marker": MARKERS[i % len(MARKERS)], "markeredgecolor": LIGHT["background"]}
            style |= {"linestyle": LINE_STYLES[i // len(MARKERS) % len(LINE_STYLES)]}
            tooltips[gid] = [f"{name}, {x.label} = {p.x:g}: {with_deviation(p.y, p.deviation, 2)}" for p in points]
        else:
            style["linestyle"] = LINE_STYLES[i % len(LINE_STYLES)]
        errors = [float("nan") if p.deviation is None else p.deviation for p in points]
        has_errors = any(p.deviation is not None for p in points)
        container = axes.errorbar(
            [p.x for p in points], [p.y for p in points], errors if has_errors else None,
            elinewidth=0.9, capsize=2, **style,
        )  # fmt: skip
        lines[name] = container.lines[0]
        lines[name].set_gid(gid)
    if x.log2:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if x.ticks:
        axes.set_xticks(x.ticks, [f"{value:g}" for value in x.ticks])
    axes.set(xlabel=f"{x.label} (log scale)" if x.log2 else x.label, ylabel=y_label)
    axes.grid(axis="y")
    _legend(figure, lines)
    drawing = finished(figure, title, description, tooltips)
    _thin_ticks(axes)
    return drawing


@figure_style()
def draw_heatmaps(title: str, description: str, maps: Sequence[HeatMap], x_label: str, y_label: str) -> Drawing:
    """Draw heat maps below each other, each on its own scale of the palette cividis, numbers in the cells.

    Args:
        title, description: text alternative; the maps have titles of their own.
        maps: at least one.
        x_label, y_label: names of columns and rows.
    """
    columns = [[wrap(name.replace(" ", "\n"), 14) for name in one.columns] for one in maps]
    longest = max(len(line) for names in columns for name in names for line in name.split("\n"))
    rows = [[wrap(name, 18) for name in one.rows] for one in maps]
    row_letters = max(len(line) for names in rows for name in names for line in name.split("\n"))
    cell = min(0.75, max(0.36, 0.072 * longest + 0.06))
    margin = 0.35 + 0.065 * row_letters
    width = max(2.4, margin + 0.1 + cell * max(len(one.columns) for one in maps))
    letters = int(max(0.8, width - margin) / 0.078)  # of a line of a title
    heights = [
        CELL * len(one.rows)
        + LINE * (wrap(one.title, letters).count("\n") + max(name.count("\n") for name in names) + 1)
        + 0.5
        for one, names in zip(maps, columns, strict=True)
    ]
    figure = new_figure(width, sum(heights))
    grid = figure.subplots(len(maps), 1, squeeze=False, height_ratios=[len(one.rows) for one in maps])
    for axes, one, names, layers in zip(grid[:, 0], maps, columns, rows, strict=True):
        _heatmap(axes, one)
        axes.set_title(wrap(one.title, letters), fontsize=7.5)
        axes.set_xticks([i + 0.5 for i in range(len(names))], names)
        axes.set_yticks([i + 0.5 for i in range(len(layers))], layers)
        axes.set(ylabel=y_label)
    grid[-1, 0].set_xlabel(x_label)
    _lay_out(figure)
    return Drawing(figure, title, description)


def _heatmap(axes: Axes, one: HeatMap) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    values = np.array([[np.nan if v is None else v for v in row] for row in one.values], dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    colors = colormaps["cividis"]
    axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=colors, vmin=low, vmax=high if high > low else low + 1,
        edgecolors=LIGHT["background"], linewidth=1,
    )  # fmt: skip
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = colors((value - low) / (high - low) if high > low else 0.0)
        ink = DARK_INK if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else LIGHT_INK
        weight = "bold" if (i, j) == one.chosen else "normal"
        axes.text(j + 0.5, i + 0.5, f"{value:.1f}", color=ink, weight=weight, ha="center", va="center", fontsize=7)
    if one.chosen is not None:  # white inside black: visible on every cell and background
        for color, width in ((LIGHT_INK, 2.6), (DARK_INK, 1.1)):
            place = (one.chosen[1], one.chosen[0])
            axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=color, linewidth=width, clip_on=False))
    axes.invert_yaxis()
    axes.set_aspect("auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2)
    axes.set_facecolor(LIGHT["rule"])


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finished(figure: Figure, title: str, description: str, tooltips: Mapping[str, Sequence[str]]) -> Drawing:
    """Add the title, fix the layout and return the drawing."""
    figure.suptitle(wrap(title, TITLE), x=0.012, ha="left")
    _lay_out(figure)
    return Drawing(figure, title, description, tooltips)


def _lay_out(figure: Figure) -> None:
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
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
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


def printable(text: str) -> str:
    """Return `text` with a space for each character that cannot be printed, which XML would refuse."""
    return "".join(c if c.isprintable() else " " for c in text)


def wrap(text: str, letters: int) -> str:
    """Return `text` in lines of at most `letters` characters; line ends that it has stay."""
    lines = (textwrap.wrap(printable(line), letters) or [""] for line in text.split("\n"))
    return "\n".join(line for several in lines for line in several)

"""Draw bars with matplotlib, and hold the style of all figures.

A figure is as wide as a column of a two-column paper and does not depend on the user's matplotlibrc. matplotlib is
imported when a figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from linear_probe.statistics import LEVEL

if TYPE_CHECKING:
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
INTERVAL = f"{100 * LEVEL:.0f} % bootstrap interval over the images"
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


def describe_error_bars(bars: Iterable[tuple[float | None, tuple[float, float] | None]]) -> str:
    """Return a sentence that says what the error bars of a figure are; empty for none.

    Args:
        bars: standard deviation over seeds, and ends of the interval that is drawn where there is no deviation.
    """
    drawn = list(bars)
    of_seeds = any(deviation is not None for deviation, _ in drawn)
    of_images = any(deviation is None and interval is not None for deviation, interval in drawn)
    if of_seeds and of_images:
        return f"Error bars: standard deviation over seeds; of a single seed, {INTERVAL}."
    if of_seeds or of_images:
        return f"Error bars: {'standard deviation over seeds' if of_seeds else INTERVAL}."
    return ""


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

"""Draw heat maps of accuracies by layer and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from linear_probe.report.plotting import LIGHT, LINE, DataRow, Drawing, figure_style, lay_out, new_figure, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 0.25  # height of a cell, inches
DARK_INK, LIGHT_INK = "#000000", "#fefefe"  # on cells, which look the same on every background


@dataclass(frozen=True)
class HeatMap:
    """A table of accuracies.

    Attributes:
        title: above it.
        rows, columns: names of the rows (layers) and columns (noise levels).
        values: percent, a row after another; None where nothing was measured.
        chosen: (row, column) to frame.
        limits: values of the darkest and the lightest colour, for maps that are compared; those of the map if None.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    chosen: tuple[int, int] | None = None
    limits: tuple[float, float] | None = None


@figure_style()
def draw_heatmaps(title: str, description: str, maps: Sequence[HeatMap], x_label: str, y_label: str) -> Drawing:
    """Draw heat maps below each other, each on a scale of the palette cividis, numbers in the cells.

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
    lay_out(figure)
    data: list[DataRow] = [("map", y_label, x_label, "percent")]
    for one in maps:
        cells = (
            (row, i, j)
            for row, of_row in zip(one.rows, one.values, strict=True)
            for i, j in zip(one.columns, of_row, strict=True)
        )
        data += [(one.title, row, column, value) for row, column, value in cells]
    return Drawing(figure, title, description, data=data)


def _heatmap(axes: Axes, one: HeatMap) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    values = np.array([[np.nan if v is None else v for v in row] for row in one.values], dtype=float)
    low, high = one.limits or (np.nanmin(values), np.nanmax(values))
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

"""Draw rows of pictures with a head above each, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linear_probe.report.plotting import LIGHT, Drawing, figure_style, wrap

TILE = 1.0  # inches, side of a picture
HEAD = 0.13  # inches, a line of a head
LABEL = 0.2  # inches, the label of a row
LETTERS = 19  # of a line of a head
TEXT_LETTERS = 17  # of a line of a row's label, for each column


@dataclass(frozen=True)
class Panel:
    """A picture with its head.

    Attributes:
        head: text above it.
        pixels: (H, W, 3) colours in [0, 1], or (H, W) numbers from 0 on, drawn from dark to bright.
        cross: (x, y) of a cross, as fractions of width and height; None for none.
    """

    head: str
    pixels: NDArray[np.float32]
    cross: tuple[float, float] | None = None


@dataclass(frozen=True)
class PanelRow:
    """A row of pictures with a label above them."""

    label: str
    panels: Sequence[Panel]


@figure_style()
def draw_panels(title: str, description: str, rows: Sequence[PanelRow]) -> Drawing:
    """Draw rows of pictures, all of the same size, without interpolation.

    Args:
        title, description: text of the figure.
        rows: from the top down; at least one, each with at least one picture.
    """
    from matplotlib.figure import Figure

    columns = max(max(len(row.panels) for row in rows), 4)
    width, gap, margin = columns * TILE, 0.07 * TILE, 0.1
    labels = [wrap(row.label, TEXT_LETTERS * columns) for row in rows]
    heads = [[wrap(panel.head, LETTERS) for panel in row.panels] for row in rows]
    title = wrap(title, 14 * columns)
    above = [
        LABEL + 0.12 * label.count("\n") + HEAD * (1 + max(head.count("\n") for head in row))
        for label, row in zip(labels, heads, strict=True)
    ]
    top = 0.3 + 0.14 * title.count("\n")
    height = top + sum(above) + len(rows) * (TILE + gap) + margin
    figure = Figure((width + 2 * margin, height))
    figure.suptitle(title, x=margin / (width + 2 * margin), y=1 - 0.08 / height, ha="left", va="top")
    at = top
    for row, label, texts, space in zip(rows, labels, heads, above, strict=True):
        figure.text(margin / (width + 2 * margin), 1 - (at + 0.05) / height, label, weight="bold", va="top")
        at += space
        for number, (panel, head) in enumerate(zip(row.panels, texts, strict=True)):
            left = (margin + number * TILE) / (width + 2 * margin)
            box = (left, 1 - (at + TILE - gap) / height, (TILE - gap) / (width + 2 * margin), (TILE - gap) / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            H, W = panel.pixels.shape[:2]
            if panel.pixels.ndim == 3:
                axes.imshow(panel.pixels.clip(0, 1))
            else:
                axes.imshow(panel.pixels, cmap="magma", vmin=0.0)
            axes.set_title(head, fontsize=6.2, weight="normal", color=LIGHT["muted"], pad=2, loc="left")
            if panel.cross is not None:
                x, y = panel.cross[0] * W - 0.5, panel.cross[1] * H - 0.5
                axes.plot([x], [y], "+", color=LIGHT["series-5"], markersize=7, markeredgewidth=1.3)
        at += TILE + gap
    return Drawing(figure, title.replace("\n", " "), description)

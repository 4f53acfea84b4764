"""A table of accuracies as a picture: the better the lighter, on a scale that the colour-blind read alike."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# cividis (Nunez, Anderton and Renslow 2018), ten colours of even steps
CIVIDIS = ("00204D", "00306F", "39486B", "575C6D", "707173", "8A8779", "A69D75", "C4B56C", "E4CF5B", "FFEA46")
EMPTY = (225, 225, 225)
CELL_HEIGHT, PADDING, MARGIN = 34, 14, 16


def colour(share: float) -> tuple[int, int, int]:
    """Of 0 (dark blue) to 1 (yellow); its lightness rises with the share."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    a, b = (tuple(bytes.fromhex(CIVIDIS[i])) for i in (low, low + 1))
    red, green, blue = (round(x + (at - low) * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def heatmap(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    row_axis: str,
    column_axis: str,
) -> Image.Image:
    """The picture, numbers in the cells, the highest in a frame.

    Args:
        values: percent, a row after another; None where there is none.
        rows, columns: their names.
        title, row_axis, column_axis: what stands above, to the left, below.
    """
    font = ImageFont.load_default(15)
    width = PADDING + max(_length(font, text) for text in [*columns, "100.0"])
    left = MARGIN + max(_length(font, text) for text in [*rows, row_axis]) + PADDING
    top = MARGIN + 2 * CELL_HEIGHT
    right = max(left + width * len(columns), MARGIN + _length(font, title), left + _length(font, column_axis))
    picture = Image.new("RGB", (right + MARGIN, top + CELL_HEIGHT * (len(rows) + 2) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, "black", font)
    draw.text((MARGIN, top - CELL_HEIGHT // 2), row_axis, "black", font, anchor="lm")
    known = [v for row in values for v in row if v is not None]
    for i, row in enumerate(values):
        y = top + CELL_HEIGHT * i
        draw.text((left - PADDING, y + CELL_HEIGHT // 2), rows[i], "black", font, anchor="rm")
        for j, value in enumerate(row):
            _cell(draw, (left + width * j, y, width, CELL_HEIGHT), value, (min(known), max(known)), font)
    below = top + CELL_HEIGHT * len(rows)
    for j, name in enumerate(columns):
        draw.text((left + width * j + width // 2, below + CELL_HEIGHT // 2), name, "black", font, anchor="mm")
    draw.text((left, below + CELL_HEIGHT * 3 // 2), column_axis, "black", font, anchor="lm")
    return picture


def _cell(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    value: float | None,
    ends: tuple[float, float],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x, y, width, height = box
    low, high = ends
    share = 1.0 if value is None or high == low else (value - low) / (high - low)
    fill = EMPTY if value is None else colour(share)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill)
    if value is None:
        return
    ink = "black" if sum(fill) > 380 else "white"
    draw.text((x + width // 2, y + height // 2), f"{value:.1f}", ink, font, anchor="mm")
    if value == high:
        draw.rectangle((x + 1, y + 1, x + width - 2, y + height - 2), outline="black", width=2)


def _length(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return round(font.getlength(text))

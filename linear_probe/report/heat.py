"""Heat maps: what each layer had at each noise level, where the choice was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linear_probe.report import svg
from linear_probe.report.columns import chosen_on
from linear_probe.results import Result, place

LEFT, TOP, HEIGHT, WIDEST, WIDTH = 62, 56, 24, 58, 360
STEPS = 10  # of colour
DARK = 7  # from this step on, text is light

Places = Mapping[tuple[int, int, str], float]


def places(result: Result) -> Places:
    """(layer, t, input) -> accuracy on the split of the choice, percent; of several poolings the best."""
    found: dict[tuple[int, int, str], float] = {}
    for name, value in result.selected.get("among", {}).items():
        at = place(name)
        found[at] = max(value, found.get(at, value))
    return found


def heat(name: str, result: Result) -> str:
    """Layers down, noise levels across; empty where one layer alone was read.

    Args:
        name: of the cell that was probed.
        result: whose `selected["among"]` is drawn; the chosen place has a frame.
    """
    found = places(result)
    layers, columns = sorted({at[0] for at in found}), sorted({at[1:] for at in found})
    if len(layers) < 2:
        return ""
    wide = min(WIDEST, (WIDTH - LEFT) / len(columns))
    low, high = min(found.values()), max(found.values())
    parts = [svg.text(0, 16, f"{result.protocol}, on {chosen_on(result)}", "head")]
    parts.append(_columns(columns, wide))
    for j, layer in enumerate(layers):
        y = TOP + HEIGHT * j
        parts.append(svg.text(LEFT - 8, y + 16, f"layer {layer}", "tick", "end"))
        for i, column in enumerate(columns):
            value = found.get((layer, *column))
            if value is not None:
                step = round((value - low) / (high - low or 1) * (STEPS - 1))
                chosen = (layer, *column) == (result.layer, result.t, result.input)
                parts.append(_box(LEFT + wide * i, y, wide, value, step, chosen))
    height = TOP + HEIGHT * len(layers) + 4
    about = (
        f"Accuracy of {name} by layer and noise level on {chosen_on(result)}, {low:.1f} to {high:.1f} %; "
        f"chosen: layer {result.layer}, t = {result.t}, {result.input}."
    )
    title = f"{name}: layer by noise level, {result.protocol}"
    return svg.drawing(WIDTH, height, title, about, "".join(parts))


def _columns(columns: Sequence[tuple[int, str]], wide: float) -> str:
    """Noise levels above the columns, and below them which input it was if it was not always the clean one."""
    both = {kind for _, kind in columns} != {"clean"}
    y = TOP - (20 if both else 7)
    parts = [svg.text(LEFT - 8, y, "t =", "tick", "end")]
    for i, (t, kind) in enumerate(columns):
        middle = LEFT + wide * (i + 0.5)
        parts.append(svg.text(middle, y, t, "tick", "middle"))
        if both:
            parts.append(svg.text(middle, TOP - 7, kind, "tiny", "middle"))
    return "".join(parts)


def _box(x: float, y: float, width: float, value: float, step: int, chosen: bool) -> str:
    tone = f"heat h{step}" + " chosen" * chosen
    box = svg.rectangle(x + 1, y + 1, width - 2, HEIGHT - 2, tone)
    return box + svg.text(x + width / 2, y + 16, f"{value:.1f}", "light" if step >= DARK else "", "middle")

"""Draw paired differences with their intervals: a forest plot."""

from __future__ import annotations

from collections.abc import Mapping

from linear_probe.report.plotting import (
    LIGHT,
    LINE,
    ROW,
    SERIES,
    TITLE,
    WIDTH,
    DataRow,
    Drawing,
    figure_style,
    finished,
    new_figure,
    wrap,
)
from linear_probe.statistics import Interval

NAME = 30  # letters of a line of a label


@figure_style()
def draw_forest(
    title: str, groups: Mapping[str, Mapping[str, Interval]], x_label: str, limits: tuple[float, float] | None = None
) -> Drawing:
    """Draw differences and their intervals around a line at zero; those whose interval contains 0 are hollow.

    Args:
        title: of the figure.
        groups: {group: {name: difference}}, from the top down; no group is empty.
        x_label: of the horizontal axis, with its unit.
        limits: ends of the horizontal axis, for figures that are compared; those of the data if None.
    """
    rows, labels, y = [], [], 0.0
    for group, differences in groups.items():
        labels.append((y, wrap(group, NAME), True))
        y += 1
        for name, difference in differences.items():
            label = wrap(name, NAME)
            y += 0.7 * label.count("\n") / 2
            labels.append((y, label, False))
            rows.append((y, group, name, difference))
            y += 1 + 0.7 * label.count("\n") / 2
        y += 0.3
    figure = new_figure(WIDTH, 0.85 + ROW * y + LINE * wrap(title, TITLE).count("\n"))
    axes = figure.subplots()
    tooltips = {}
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.9, zorder=1)
    for i, (at, group, name, d) in enumerate(rows):
        lengths = [[max(0.0, d.mean - d.low)], [max(0.0, d.high - d.mean)]]
        fill = LIGHT["background"] if d.contains_zero else SERIES[0]
        container = axes.errorbar(
            [d.mean], [at], xerr=lengths, fmt="o", color=SERIES[0], markerfacecolor=fill, markeredgecolor=SERIES[0],
            markeredgewidth=1.0, elinewidth=1.2, capsize=2,
        )  # fmt: skip
        container.lines[0].set_gid(f"difference-{i}")
        tooltips[f"difference-{i}"] = [f"{group}, {name}: {difference_text(d)}"]
    axes.set_yticks([at for at, _, _ in labels], [label for _, label, _ in labels])
    for tick, (_, _, is_group) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_color(LIGHT["text"])
        tick.set_fontweight("bold" if is_group else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(y - 0.3, -0.7), xlabel=x_label)
    if limits is not None:
        margin = 0.05 * (limits[1] - limits[0]) or 1
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
    axes.grid(axis="x")
    texts = "; ".join(f"{group}, {name} {difference_text(d)}" for _, group, name, d in rows)
    data: list[DataRow] = [["group", "name", "difference", "interval low", "interval high"]]
    data += [[group, name, d.mean, d.low, d.high] for _, group, name, d in rows]
    return finished(figure, title, f"{x_label}: {texts}.", tooltips, data)


def difference_text(difference: Interval) -> str:
    """Return a difference and its interval: `+1.2 [0.3, 2.1]`."""
    return f"{difference.mean:+.1f} [{difference.low:.1f}, {difference.high:.1f}]"

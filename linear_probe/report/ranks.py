"""Draw mean ranks over data sets with their critical difference."""

from __future__ import annotations

from collections.abc import Mapping

from linear_probe.report.plotting import (
    LIGHT,
    LINE,
    ROW,
    SERIES,
    WIDTH,
    DataRow,
    Drawing,
    figure_style,
    finished,
    new_figure,
    wrap,
)
from linear_probe.statistics import SIGNIFICANCE, critical_difference

NAME = 30  # letters of a line of an encoder's name


@figure_style()
def draw_ranks(title: str, mean_ranks: Mapping[str, float], columns: int) -> Drawing:
    """Draw the mean rank of each encoder, with a bar as long as the critical difference (Demsar 2006).

    Two encoders differ by Nemenyi's test where their bars do not overlap.

    Args:
        title: title of the figure.
        mean_ranks: {encoder: mean rank}, 1 being the best; at least two.
        columns: number of data sets.
    """
    least = critical_difference(len(mean_ranks), columns)
    names = sorted(mean_ranks, key=lambda name: mean_ranks[name])
    labels = [wrap(name, NAME) for name in names]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = new_figure(WIDTH, 0.85 + len(names) * (ROW + 0.04) + (lines - len(names)) * LINE)
    axes = figure.subplots()
    axes.errorbar(
        [mean_ranks[name] for name in names], range(len(names)), xerr=least / 2,
        fmt="o", color=SERIES[0], ecolor=LIGHT["baseline"], elinewidth=3,
    )  # fmt: skip
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_xlabel(f"mean rank, {columns} data sets, 1: best\nbars apart: they differ")
    axes.grid(axis="x")
    ranks = ", ".join(f"{name} {mean_ranks[name]:.2f}" for name in names)
    description = f"Mean ranks: {ranks}. Critical difference at {SIGNIFICANCE}: {least:.2f} (Nemenyi)."
    data: list[DataRow] = [["encoder", "mean rank"]]
    data += [[name, mean_ranks[name]] for name in names]
    data.append(["critical difference", least])
    return finished(figure, title, description, {}, data)

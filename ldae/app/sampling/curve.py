"""Draw the realism of SDEdit's results over their faithfulness, a point for each t0 (Fig. 4, arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldae.core.files import open_atomic
from ldae.metrics.distances import metric_name
from ldae.sampling.restore import Edit
from linear_probe.report.plotting import LIGHT, SERIES, WIDTH, DataRow, Drawing, figure_style, finished, new_figure
from linear_probe.report.rendering import render

# label, L2 distance to the guide, kernel distance to real images and its standard error
Point = tuple[str, float, float, float]


def write_curve(folder: Path, figures: Mapping[str, Mapping[str, float]], edit: Edit, features: str) -> None:
    """Write curve.svg, curve.pdf, curve.png and curve.csv.

    Args:
        folder: where to write them.
        figures: column -> scores: those of every edit with `l2`, and those of the guide.
        edit: the edits.
        features: name of the features of the distance to real images.
    """
    metric, error = (metric_name(name, features) for name in ("kernel_distance", "kernel_distance_error"))
    scores = {name: figures[name] for name in edit.compared}
    points = [(name, of.get("l2", 0.0), of[metric], of[error]) for name, of in scores.items()]
    for suffix, content in render(draw_curve(points, metric)).items():
        with open_atomic(folder / f"curve.{suffix}") as file:
            file.write(content)


@figure_style()
def draw_curve(points: Sequence[Point], metric: str) -> Drawing:
    """Draw the curve: distance to real images over the L2 distance to the guide, each point with label and error.

    Args:
        points: by rising t0; the first is the guide itself.
        metric: name of the distance.
    """
    figure = new_figure(WIDTH, 2.9)
    axes = figure.subplots()
    x, y, errors = ([point[i] for point in points] for i in (1, 2, 3))
    axes.errorbar(x, y, yerr=errors, color=SERIES[0], linestyle="none", capsize=2, linewidth=1)
    (line,) = axes.plot(x, y, color=SERIES[0], marker="o", markeredgecolor=LIGHT["background"])
    line.set_gid("curve")
    axes.plot(x[:1], y[:1], color=SERIES[1], marker="s", linestyle="none")
    for label, a, b, error in points:
        text, offset = label.replace("t0=", ""), (0, 4)
        axes.annotate(text, (a, b + error), offset, textcoords="offset points", ha="center", fontsize=7)
    axes.margins(x=0.08, y=0.15)
    short = metric.partition("[")[0].replace("_", " ")  # the name of the features is longer than the axis
    axes.set(xlabel="L2 distance to the guide (lower: more faithful)", ylabel=f"{short}\n(lower: more realistic)")
    axes.grid()
    spread = "; ".join(f"{label}: L2 {a:.3g}, distance {b:.4g} (error {e:.2g})" for label, a, b, e in points)
    description = f"{metric} of edits to real images over their L2 distance to the guide, for each t0. {spread}."
    title = "Realism and faithfulness by t0"
    tooltips = {"curve": [f"{label}: {a:.3g}, {b:.4g} ({e:.2g})" for label, a, b, e in points]}
    data: list[DataRow] = [["t0", "L2 distance to the guide", metric, "standard error"], *points]
    return finished(figure, title, description, tooltips, data)

"""Draw accuracy on CIFAR-10 against the FLOP of the pretraining, for two recipes of l-DAE and for MAE, from results/.

    python results/accuracy_per_flop.py

Writes results/cifar10/per_flop-PROTOCOL.png and .csv for the linear probe, kNN and kNN on whitened features, and prints
for each protocol where MAE's line crosses the others, if it does.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ldae.core.files import write_text
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.rendering import csv_text, render
from linear_probe.results import Result, read_results, title

HERE = Path(__file__).resolve().parent
FILES = ("cifar10_equal.jsonl", "cifar10_long.jsonl", "cifar10_mae.jsonl", "cifar10_muon.jsonl")
BATCH = 32
DATA = ("CIFAR-10", "CIFAR")  # of newer and of older lines
# GFLOP of an image, forward, backward and update: `ldae plan experiment=ldae/cifar10_cpu` (and `denoiser.keep=0.5`) and
# `mae/cifar10_cpu`
GFLOP = {"l-DAE, the recipe": 0.355, "l-DAE, half of the tokens": 0.436, "MAE": 0.420}
STEPS = {
    "l-DAE, the recipe": {3475, 6356, 25426},
    "l-DAE, half of the tokens": {2835, 5186, 20745},
    "MAE": {2197, 5384, 11248, 21535},
}
PROTOCOLS = ("lbfgs", "knn", "knn_whitened")


def main() -> None:
    """Draw the three figures."""
    lines = [line for name in FILES for line in read_results(HERE / name)]
    for protocol in PROTOCOLS:
        series = {name: points_of(lines, name, protocol) for name in STEPS}
        axis = XAxis("FLOP of the pretraining, 1e13", log2=True, ticks=(2, 4, 8, 16, 32))
        listed = "; ".join(f"{name}: {_listed(points)}" for name, points in series.items())
        name = title(protocol)
        drawing = draw_lines(f"CIFAR-10, {name}, against FLOP", f"{listed}.", series, axis, "top-1 accuracy (%)")
        stem = HERE / "cifar10" / f"per_flop-{protocol}"
        stem.with_suffix(".png").write_bytes(render(drawing)["png"])
        write_text(stem.with_suffix(".csv"), csv_text(drawing.data))
        mae = series.pop("MAE")
        crossings = "; ".join(f"{encoder} and MAE: {crossing(points, mae)}" for encoder, points in series.items())
        print(f"{name}: {listed}; {crossings}")


def points_of(lines: Sequence[Result], encoder: str, protocol: str) -> list[Point]:
    """Return the mean test accuracy at each length of pretraining, and its deviation over seeds of pretraining."""
    by_steps: Mapping[int, dict[int, float]] = defaultdict(dict)
    for line in lines:
        named = line.encoder.startswith(encoder)
        of_protocol = line.protocol == protocol and (line.split, line.labels) == ("test", "all")
        if named and of_protocol and line.data in DATA and line.step in STEPS[encoder]:
            by_steps[line.step].setdefault(line.seed, line.accuracy)
    points = []
    for steps, of_seed in sorted(by_steps.items()):
        deviation = statistics.stdev(of_seed.values()) if len(of_seed) > 1 else None
        flop = steps * BATCH * GFLOP[encoder] * 1e9 / 1e13
        points.append(Point(flop, statistics.fmean(of_seed.values()), deviation))
    return points


def _listed(points: Sequence[Point]) -> str:
    return ", ".join(f"{p.y:.1f} at {p.x:.1f}" for p in points)


def crossing(a: Sequence[Point], b: Sequence[Point]) -> str:
    """Say where two lines cross, read between their points, within the FLOP that both have."""
    low, high = max(a[0].x, b[0].x), min(a[-1].x, b[-1].x)
    places = sorted({low, high, *(p.x for p in [*a, *b] if low <= p.x <= high)})
    gaps = [_between(a, x) - _between(b, x) for x in places]
    for x, y, first, second in zip(places, places[1:], gaps, gaps[1:], strict=False):
        if first * second < 0:
            return f"they cross at {x * (y / x) ** (first / (first - second)):.1f}"
    return f"no crossing: {gaps[0]:+.1f} to {gaps[-1]:+.1f} points between {low:.1f} and {high:.1f}"


def _between(points: Sequence[Point], x: float) -> float:
    """Return the height of a line at x, straight over the logarithm of x."""
    return float(np.interp(np.log(x), np.log([p.x for p in points]), [p.y for p in points]))


if __name__ == "__main__":
    main()

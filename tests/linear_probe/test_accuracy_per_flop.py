"""The script of accuracy against FLOP: where lines cross, and which result lines it reads."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from report_rows import RESULT

from linear_probe.report.lines import Point

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "results" / "accuracy_per_flop.py"))


def test_lines_cross_between_their_points_over_the_logarithm():
    rising, flat = [Point(1, 0), Point(4, 2)], [Point(0.5, 1), Point(8, 1)]
    assert SCRIPT["crossing"](rising, flat) == SCRIPT["crossing"](flat, rising) == "they cross at 2.0"
    above = [Point(2, 3), Point(8, 4)]
    assert SCRIPT["crossing"](above, rising) == "no crossing: +2.0 to +1.5 points between 2.0 and 4.0"


def test_points_are_means_over_seeds_of_test_accuracies():
    line = replace(
        RESULT, encoder="MAE, few images", protocol="knn", split="test", labels="all", data="CIFAR-10", step=5384
    )
    lines = [
        replace(line, seed=0, accuracy=40.0),
        replace(line, seed=1, accuracy=42.0),
        replace(line, seed=2, accuracy=90.0, split="holdout"),
        replace(line, seed=2, accuracy=90.0, data="Photos"),
        replace(line, seed=2, accuracy=90.0, labels="1%"),
        replace(line, seed=2, accuracy=90.0, step=1),
        replace(line, seed=2, accuracy=90.0, encoder="l-DAE"),
    ]
    recipe = "l-DAE, the recipe"
    other = replace(line, encoder="l-DAE, half of the tokens, few images", step=min(SCRIPT["STEPS"][recipe]))
    assert SCRIPT["points_of"]([other], recipe, "knn") == []
    (point,) = SCRIPT["points_of"](lines, "MAE", "knn")
    assert (point.y, point.deviation) == (41.0, pytest.approx(2**0.5))
    assert point.x == pytest.approx(5384 * 32 * 0.42e9 / 1e13)

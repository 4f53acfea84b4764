"""Spearman's rank correlation of known orders."""

from __future__ import annotations

import pytest

from linear_probe.agreement import agreements
from linear_probe.results import Result
from linear_probe.rows import Row


def row(paper, grid="g", **accuracies):
    blank = dict.fromkeys(Result.__dataclass_fields__, "")
    results = [Result(**{**blank, "protocol": name, "accuracy": value}) for name, value in accuracies.items()]
    return Row(grid, "c", {}, results, paper, "", "", 0, 0.0, "core", "", "")


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((10, 20, 30, 40, 50), 1.0),
        ((50, 40, 30, 20, 10), -1.0),
        ((20, 10, 40, 30, 50), 0.8),  # 1 - 6 sum(d^2) / (n (n^2 - 1)) = 1 - 24 / 120
    ],
)
def test_the_correlation_is_that_of_the_ranks(ours, expected):
    found = agreements([row(paper, lbfgs=value) for paper, value in zip((1, 2, 3, 4, 500), ours, strict=True)])
    assert found["g", "lbfgs"].rho == pytest.approx(expected)
    assert found["g", "lbfgs"].count == 5


def test_grids_and_protocols_are_not_mixed_and_rows_without_a_paper_are_left_out():
    rows = [row(p, lbfgs=p, knn=-p) for p in (1, 2, 3)] + [row(None, lbfgs=0, knn=9)]
    rows += [row(p, "h", lbfgs=p) for p in (1, 2)]  # too few for an order
    found = {key: (round(a.rho, 6), a.count) for key, a in agreements(rows).items()}
    assert found == {("g", "lbfgs"): (1.0, 3), ("g", "knn"): (-1.0, 3)}

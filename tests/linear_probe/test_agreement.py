"""Spearman's rank correlation of known orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from linear_probe.agreement import agreements, interval
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
    correlations = agreements([row(paper, lbfgs=value) for paper, value in zip((1, 2, 3, 4, 500), ours, strict=True)])
    assert correlations["g", "lbfgs"].rho == pytest.approx(expected)
    assert correlations["g", "lbfgs"].count == 5


def test_grids_and_protocols_are_not_mixed_and_rows_without_a_paper_are_left_out():
    rows = [row(p, lbfgs=p, knn=-p) for p in (1, 2, 3)] + [row(None, lbfgs=0, knn=9)]
    rows += [row(p, "h", lbfgs=p) for p in (1, 2)]  # too few for an order
    correlations = {key: (round(a.rho, 6), a.count) for key, a in agreements(rows).items()}
    assert correlations == {("g", "lbfgs"): (1.0, 3), ("g", "knn"): (-1.0, 3)}


def test_the_interval_is_that_of_scipys_bootstrap_and_always_the_same():
    pairs = np.random.default_rng(1).normal(size=(13, 2)).cumsum(0)
    low, high = interval(pairs)
    reference = stats.bootstrap(
        (pairs[:, 0], pairs[:, 1]),
        lambda x, y: stats.spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.03)
    assert interval(pairs) == (low, high)
    assert low < stats.spearmanr(*pairs.T).statistic < high


def test_a_perfect_order_has_no_other_resample():
    assert interval(np.array([[1.0, 2.0], [2.0, 5.0], [3.0, 9.0]])) == pytest.approx((1, 1))

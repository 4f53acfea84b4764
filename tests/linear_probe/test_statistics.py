"""Intervals against scipy's bootstrap and their coverage; ranks against published quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from linear_probe.statistics import critical_difference, interval, paired_difference, ranks


def test_an_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(0)
    for values in (rng.random(400) < 0.7, rng.integers(0, 4, 300) / 3):
        ours = interval(values, draws=50_000)
        theirs = stats.bootstrap(
            (values.astype(float),), np.mean, n_resamples=50_000, method="percentile", random_state=1
        ).confidence_interval
        assert ours.mean == pytest.approx(100 * values.mean())
        assert (ours.low, ours.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=0.3)


def test_an_interval_of_one_classifier_is_a_binomial_one():
    correct = np.arange(500) < 410
    ours = interval(correct, draws=100_000)
    exact = stats.binom.ppf([0.025, 0.975], 500, 0.82) / 5
    assert (ours.low, ours.high) == pytest.approx(tuple(exact), abs=0.21)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered, paired = np.random.default_rng(2), 0, 0
    for seed in range(400):
        skill = rng.random(600)  # how easy each image is, for both
        a, b = rng.random(600) < 0.6 + 0.3 * skill, rng.random(600) < 0.55 + 0.3 * skill
        one, difference = interval(a, draws=800, seed=seed), paired_difference(a, b, draws=800, seed=seed)
        covered += one.low <= 75 <= one.high
        paired += difference.low <= 5 <= difference.high
    assert 0.92 <= covered / 400 <= 0.98  # 0.95, within three standard errors
    assert 0.92 <= paired / 400 <= 0.98


def test_distinct_values_have_the_same_interval_drawn_together_and_one_by_one(monkeypatch):
    values = np.random.default_rng(0).random(1500)
    each = interval(values)
    monkeypatch.setattr("linear_probe.statistics.FEW", len(values))
    together = interval(values)
    assert (each.low, each.high) == pytest.approx((together.low, together.high), abs=0.06)  # of a width of 2.9
    assert each.high - each.low == pytest.approx(2 * 196 * values.std() / len(values) ** 0.5, rel=0.04)


def test_pairing_narrows_the_interval_of_classifiers_that_err_on_the_same_images():
    rng = np.random.default_rng(3)
    a = rng.random(1000) < 0.7
    b = np.where(rng.random(1000) < 0.05, ~a, a)
    difference, apart = paired_difference(a, b), interval(a)
    assert difference.high - difference.low < 0.6 * (apart.high - apart.low)
    assert difference.low < 2 < difference.high  # 0.05 x (0.7 - 0.3)
    assert not difference.contains_zero
    assert paired_difference(a, np.zeros(1000)).low > 60
    assert paired_difference(a, a) == paired_difference(b, b)
    assert (paired_difference(a, a).low, paired_difference(a, a).high) == (0, 0)


@pytest.mark.parametrize("values", [[], [[1.0]], [np.nan]])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="no finite numbers of at least one image"):
        interval(values)
    with pytest.raises(ValueError, match="not of the same images"):
        paired_difference([1, 0], [1])


def test_ranks_of_ties_are_shared():
    np.testing.assert_array_equal(ranks([[90, 50], [80, 60], [90, 40]]), [[1.5, 2], [3, 1], [1.5, 3]])


# q of Table 5 (a) of Demsar, JMLR 7, 2006: two-tailed Nemenyi test at 0.05
@pytest.mark.parametrize(("encoders", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_published_quantiles(encoders, q):
    assert critical_difference(encoders, 14) == pytest.approx(q * np.sqrt(encoders * (encoders + 1) / 84), abs=2e-3)


def test_fewer_than_two_encoders_have_no_critical_difference():
    with pytest.raises(ValueError, match="cannot differ"):
        critical_difference(1, 3)

"""Rows of an ablation: several seeds of a trial become one row."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
from report_rows import RESULT

from linear_probe.folds import merge_folds
from linear_probe.results import Result, pack_correct
from linear_probe.rows import Row, merge_results, merge_seeds
from linear_probe.statistics import interval


def result(accuracy, seed, protocol="lbfgs", encoder="e"):
    blank = dict.fromkeys(Result.__dataclass_fields__, "")
    return Result(
        **{
            **blank,
            "accuracy": accuracy,
            "selected_accuracy": accuracy + 1,
            "seed": seed,
            "protocol": protocol,
            "encoder": encoder,
            "selected": {"k": seed},
            "deviation": None,
            "seeds": (),
        }
    )


def row(trial, results, hours=1.0):
    return Row("g", trial, {}, results, 50.0, "", "", 10, hours, "core", f"command of {results[0].seed}", "")


def test_rows_of_several_seeds_become_their_mean_and_sample_deviation():
    accuracies = {0: 50.0, 1: 53.0, 2: 55.0}
    rows = [row("a", [result(v, s), result(2 * v, s, "knn")], hours=s + 1.0) for s, v in accuracies.items()]
    merged, other = merge_seeds([rows[0], row("b", [result(9.0, 0)]), *rows[1:]])
    assert (merged.trial, other.trial) == ("a", "b")
    for one, factor in zip(merged.results, (1, 2), strict=True):
        assert one.accuracy == pytest.approx(factor * statistics.fmean(accuracies.values()))
        assert one.deviation == pytest.approx(factor * statistics.stdev(accuracies.values()))
        assert one.seeds == [0, 1, 2]
        assert [entry["accuracy"] for entry in one.selected["by_seed"]] == [factor * v for v in accuracies.values()]
        assert one.selected["k"] == 0
    assert (merged.hours, merged.command, merged.paper) == (2.0, "command of 0", 50.0)
    assert other.results == [result(9.0, 0)]


def test_results_of_other_encoders_and_protocols_are_not_averaged_and_equal_seeds_count_once():
    results = [result(1.0, 0), result(3.0, 1), result(5.0, 0, "knn"), result(7.0, 0, encoder="f"), result(1.0, 0)]
    merged = merge_results(results)
    assert [(r.encoder, r.protocol, r.accuracy) for r in merged] == [
        ("e", "lbfgs", 2),
        ("e", "knn", 5),
        ("f", "lbfgs", 7),
    ]


def test_a_mean_over_seeds_keeps_its_images_interval_and_further_measures():
    correct = np.random.default_rng(0).random((3, 200)) < 0.7
    seeds = [
        replace(
            result(100 * float(of.mean()), seed),
            images=200,
            correct=pack_correct(of[None]),
            values="",
            further={"calibration error": 1.0 + seed},
        )
        for seed, of in enumerate(correct)
    ]
    (merged,) = merge_results(seeds)
    assert merged.per_image() == pytest.approx(correct.mean(0), abs=1e-5)
    assert merged.low < merged.accuracy < merged.high
    assert merged.further == {"calibration error": 2.0}
    (unknown,) = merge_results([seeds[0], replace(seeds[1], correct="")])
    assert (unknown.has_images, unknown.low, unknown.high) == (False, None, None)
    (other, _) = merge_results([seeds[0], replace(seeds[1], measure="accuracy under corruption")])
    assert other == seeds[0]


def test_folds_are_merged_over_all_their_images():
    sizes, rng = (120, 80), np.random.default_rng(0)
    correct = [rng.random((1, size)) < 0.6 for size in sizes]
    folds = [
        replace(
            result(100 * float(of.mean()), 0),
            images=of.shape[1],
            correct=pack_correct(of),
            values="",
            further={"calibration error": 10.0 * number},
            selected_on="holdout",
            data_fingerprint=f"fold {number}",
            warnings=["few images"],
        )
        for number, of in enumerate(correct)
    ]
    merged = merge_folds(folds)
    assert (merged.images, merged.warnings) == (200, ["few images"])
    assert merged.per_image().tolist() == np.concatenate(correct, 1)[0].tolist()
    assert merged.accuracy == pytest.approx(100 * merged.per_image().mean())
    assert merged.further == {"calibration error": 4.0}
    assert merged.selected_on == "holdout of each of 2 folds"
    assert merged.data_fingerprint != merge_folds(folds[::-1]).data_fingerprint


def test_merged_seeds_have_the_images_and_the_interval_of_all_of_them():
    correct = np.random.default_rng(0).random((2, 100)) < [[0.8], [0.6]]
    results = [
        replace(RESULT, seed=seed, accuracy=100 * c.mean(), correct=pack_correct(c[None]), low=0.0, high=1.0)
        for seed, c in enumerate(correct)
    ]
    (merged,) = merge_results(results)
    np.testing.assert_allclose(merged.per_image(), correct.mean(0))
    expected = interval(correct.mean(0))
    assert (merged.low, merged.high) == (expected.low, expected.high)
    (unknown,) = merge_results([replace(r, correct="") for r in results])
    assert (unknown.low, unknown.high, unknown.correct) == (None, None, "")

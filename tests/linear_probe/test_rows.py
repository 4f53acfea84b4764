"""Rows of an ablation: several seeds of a trial become one row."""

from __future__ import annotations

import statistics

import pytest

from linear_probe.results import Result
from linear_probe.rows import Row, merge_results, merge_seeds


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

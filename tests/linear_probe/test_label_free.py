"""The rank correlation of measures without labels with accuracies, over result lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from linear_probe.label_free import correlations, main, results_below
from linear_probe.results import Result, write_results

LINE = Result(
    "l-DAE", "knn", "", 40.0, "test", 100, {"features": "layer1"}, "holdout", 41.0, 1, 0, "clean", "mean", 8, "none", 0,
    0, "CIFAR", "f" * 8, "c", "commit", "ldae probe", "CPU", "2026",
)  # fmt: skip


def lines(accuracies, rankme, **changes):
    return [
        replace(LINE, encoder=f"encoder {i}", accuracy=a, geometry={"rankme": r, "uniformity": -r}, **changes)
        for i, (a, r) in enumerate(zip(accuracies, rankme, strict=True))
    ]


def test_the_correlation_is_spearmans_within_a_protocol_and_data_set():
    generator = np.random.default_rng(0)
    accuracies, ranks = generator.normal(size=(2, 12))
    other = lines(range(6), range(6), protocol="lbfgs")
    rows = correlations([*lines(accuracies, ranks), *other, *lines(range(4), range(4), data="few")])
    assert {(c.data, c.protocol) for c in rows} == {("CIFAR", "knn"), ("CIFAR", "lbfgs")}  # four encoders are too few
    of_knn = {c.measure: c.agreement for c in rows if c.protocol == "knn"}
    assert of_knn["rankme"].rho == pytest.approx(spearmanr(accuracies, ranks).statistic)
    assert of_knn["rankme"].low <= of_knn["rankme"].rho <= of_knn["rankme"].high
    assert of_knn["uniformity"].rho == pytest.approx(of_knn["rankme"].rho)  # lower is better
    assert [c.agreement.rho for c in rows if c.protocol == "lbfgs"] == pytest.approx([1, 1])


def test_an_encoder_counts_once():
    once = lines(range(5), range(5))
    assert correlations([*once, *once])[0].agreement.count == 5


def test_lines_are_gathered_below_a_folder(tmp_path, capsys):
    write_results(tmp_path / "a.jsonl", lines(range(5), range(5)))
    (tmp_path / "deep").mkdir()
    write_results(tmp_path / "deep" / "b.jsonl", [LINE])  # without measures
    (tmp_path / "deep" / "bench.jsonl").write_text('{"figure": 1}\nno JSON\n')
    assert len(list(results_below(tmp_path))) == 5
    assert main([str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()[2]
    assert [cell.strip() for cell in first.split("|")[1:5]] == ["CIFAR: kNN, test", "rankme", "5", "1.00"]
    assert main([str(tmp_path / "deep")]) == 0
    assert "has 0 result lines with measures" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 65
    assert main([]) == 2

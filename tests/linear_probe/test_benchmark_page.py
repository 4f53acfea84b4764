"""The page of a benchmark: marks, figures, tables for papers, numbers as CSV."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from report_rows import RESULT
from test_comparison import A, B, comparison, scored
from test_report import Elements
from test_report_figures import assert_readable, error_bars

from linear_probe.comparison import Column, Comparison
from linear_probe.report.benchmark_page import difference_limits, kinds_of, write_benchmark
from linear_probe.report.forest import draw_forest
from linear_probe.statistics import Interval, paired_difference


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    write_benchmark(comparison(), out, "A made-up <benchmark>", "A made-up suite.", ["photos: few images"])
    return out


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_csv_files_have_every_result_and_difference(written):
    made = comparison()
    rows = read(written / "accuracies.csv")
    assert len(rows) == sum(map(len, made.results.values())) == 5
    for row in rows:
        column = Column(row["data"], row["task"], row["protocol"])
        assert float(row["percent"]) == made.results[column][row["encoder"]].accuracy
    marks = {(row["data"], row["encoder"]): row["mark"] for row in rows}
    assert [marks["photos", name] for name in ("good", "close", "bad")] == ["best", "near", ""]
    (difference,) = [
        row for row in read(written / "differences.csv") if row["minus"] == "bad" and row["data"] == "photos"
    ]
    expected = paired_difference(*(made.results[A][name].per_image() for name in ("good", "bad")))
    assert [float(difference[k]) for k in ("difference", "interval low", "interval high")] == [
        expected.mean, expected.low, expected.high,
    ]  # fmt: skip


def test_the_page_marks_the_best_and_what_is_within_noise(written):
    page = Elements((written / "index.html").read_text())
    cells = [attrs for tag, attrs, _ in page.elements if tag == "td"]
    marked = {attrs["data-head"]: set() for attrs in cells}
    for attrs in cells:
        marked[attrs["data-head"]] |= {attrs["class"]} & {"n best", "n near"}
    assert marked == {"photos linear": {"n best", "n near"}, "digits 5-shot kNN": {"n best"}}
    assert "A made-up &lt;benchmark&gt;" in (written / "index.html").read_text()
    assert "photos: few images" in (written / "index.html").read_text()
    for tag, attrs, _ in page.elements:
        if tag == "a":
            assert (written / attrs["href"]).is_file()


def test_a_table_for_a_paper_has_marks_and_a_caption(written):
    tex = (written / "tables" / "linear.tex").read_text()
    assert r"\caption{A made-up suite. Protocol: linear. Bold: the best;" in tex
    assert tex.count(r"\textbf{") == tex.count(r"\underline{") == 1
    assert "mean rank" not in tex  # one data set
    assert {p.name for p in (written / "tables").iterdir()} == {"linear.tex", "5-shot-knn.tex"}


def test_a_paper_about_one_data_set_has_the_protocols_of_a_task_as_columns(tmp_path):
    keys = [("all labels", "lbfgs"), ("all labels", "knn"), ("5-shot", "knn")]
    results = {Column("one", *key): {"a": scored(np.eye(1, 10, dtype=bool))} for key in keys}
    write_benchmark(Comparison("a", results), tmp_path, "t", "Suite.")
    tables = {p.name: p.read_text() for p in (tmp_path / "tables").iterdir()}
    assert tables.keys() == {"all-labels.tex", "5-shot.tex"}
    assert "encoder & linear & kNN" in tables["all-labels.tex"]
    assert "Suite. Task: all labels." in tables["all-labels.tex"]
    assert "encoder & kNN" in tables["5-shot.tex"]


def test_figures_of_one_protocol_share_their_scale_and_ranks_need_two_data_sets(tmp_path):
    columns = [Column(data, "all labels", "lbfgs") for data in ("one", "two")]
    results = {
        column: {name: replace(RESULT, accuracy=value, low=value - 2, high=value + 3) for name, value in of.items()}
        for column, of in zip(columns, ({"a": 90.0, "b": 80.0}, {"a": 30.0, "b": 20.0}), strict=True)
    }
    write_benchmark(Comparison("ab", results), tmp_path, "t", "l")
    names = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert names == {"ranks-linear", "linear-one", "linear-two"}  # no differences: images are not known one by one
    ticks = [(tmp_path / "figures" / f"linear-{data}.svg").read_text().count("xtick_") for data in ("one", "two")]
    assert ticks[0] == ticks[1]
    assert "mean rank" in (tmp_path / "tables" / "linear.tex").read_text()
    rows = read(tmp_path / "figures" / "linear-one.csv")
    assert [(r["name"], r["value"], r["interval low"], r["interval high"]) for r in rows] == [
        ("a", "90.0", "88.0", "93.0"), ("b", "80.0", "78.0", "83.0"),
    ]  # fmt: skip


def test_differences_of_one_measure_share_their_scale():
    good, random = np.ones((1, 400), dtype=bool), np.random.default_rng(0).random((1, 400))
    right = {"lbfgs": random < 0.9, "knn": random < 0.7, "ood_knn": random < 0.1}  # of the second encoder
    results = {
        Column("one", "all labels", protocol): {
            name: replace(scored(of), protocol=protocol, measure="AUROC" if protocol == "ood_knn" else "accuracy")
            for name, of in (("a", good), ("b", of_second))
        }
        for protocol, of_second in right.items()
    }
    made = Comparison("ab", results)
    highest = {protocol: paired_difference(good[0], of[0]).high for protocol, of in right.items()}
    limits = difference_limits(made, list(kinds_of(made)))
    assert limits == {"accuracy (%)": (0, highest["knn"]), "AUROC (%)": (0, highest["ood_knn"])}
    assert highest["knn"] < 50 < highest["ood_knn"]


def test_a_forest_plot_has_every_difference_and_hollow_marks_where_it_is_within_noise():
    groups = {
        "photos": {"close": Interval(0.5, -0.5, 1.5), "a name of an encoder that is long:" * 2: Interval(40, 35, 44)},
        str(B): {"bad": Interval(-9, -12, -6)},
    }
    drawing = draw_forest("title", groups, "difference", (-12.0, 44.0))
    (axes,) = drawing.figure.axes
    assert sorted(error_bars(axes).values()) == [1.0, 3.0, 4.5]
    fills = {c.lines[0].get_xdata()[0]: c.lines[0].get_markerfacecolor() for c in axes.containers}
    assert fills[0.5] != fills[40] == fills[-9]
    assert [row[2] for row in drawing.data[1:]] == [0.5, 40, -9]
    assert_readable(drawing.figure)
    assert np.isclose(axes.get_ylim()[1], -0.7)

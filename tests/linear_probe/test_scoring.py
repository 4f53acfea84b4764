"""linear_probe.score: the accuracies of the protocols, on arrays, with errors that name the array."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

import linear_probe
from linear_probe.feature_file import read_features
from linear_probe.protocols import joined
from linear_probe.registry import PROTOCOLS


@pytest.fixture(scope="module")
def arrays():
    x, y = load_digits(return_X_y=True)
    return {"train_x": x[:1200], "train_y": y[:1200], "test_x": x[1200:], "test_y": y[1200:]}


@pytest.mark.parametrize("own_holdout", [False, True])
def test_accuracies_equal_those_of_a_feature_file(tmp_path, arrays, own_holdout):
    if own_holdout:
        x, y = arrays["train_x"], arrays["train_y"]
        arrays = {**arrays, "train_x": x[:900], "train_y": y[:900], "holdout_x": x[900:], "holdout_y": y[900:]}
    np.savez(tmp_path / "f.npz", **arrays)
    splits = read_features(tmp_path / "f.npz").splits
    table = linear_probe.score(**arrays, protocols=("lbfgs", "knn", "ddae"), seed=3)
    for row in table.rows:
        protocol = PROTOCOLS[row["protocol"]]
        choice = protocol.select(splits["train"], splits["holdout"], 10, 3)
        both = joined(splits["train"], splits["holdout"])
        assert (row["setting"], row["holdout_accuracy"]) == (choice.setting, choice.accuracy)
        assert row["accuracy"] == protocol.evaluate(choice.setting, both, splits["test"], 10, 3).score


def test_a_table_prints_as_markdown_and_serialises(arrays):
    table = linear_probe.score(**arrays)
    head, rule, *lines = str(table).splitlines()
    assert "test accuracy, %" in head
    assert set(rule) <= set("|-: ")
    assert [f"{value:.2f}" in line for value, line in zip(table.accuracies.values(), lines, strict=False)] == [True] * 2
    assert "most frequent class" in lines[2]
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["accuracy"] == table.accuracies["lbfgs"]
    assert repr(table) == table._repr_markdown_() == str(table)


def test_labels_may_be_strings_and_few_images_warn(arrays):
    named = {k: v.astype(str) if k.endswith("_y") else v for k, v in arrays.items()}
    assert linear_probe.score(**named).accuracies == linear_probe.score(**arrays).accuracies
    few = {k: v[:40] if k.startswith("test") else v for k, v in arrays.items()}
    with pytest.warns(UserWarning, match="test has 40 images"):
        table = linear_probe.score(**few, protocols=["knn"])
    assert "Warning: test has 40 images" in str(table)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocols": ["nearest"]}, "protocols: 'nearest' is none; give some of lbfgs"),
        ({"protocols": "lbfgs"}, "is no list of names"),
        ({"protocols": ["mae_augmented"]}, "encodes augmented images"),
        ({"train_x": np.zeros(3)}, r"train_x has shape \(3,\)"),
        ({"test_x": np.zeros((597, 5))}, "features have different dimensions"),
        ({"train_y": np.zeros(1200, int), "test_y": np.zeros(597, int)}, "single class"),
        ({"test_x": np.full((597, 64), np.nan)}, "test_x has numbers that are not finite"),
        ({"train_y": np.zeros(1200)}, "train_y has dtype float64"),
        ({"train_x": np.zeros((1200, 2), complex)}, "train_x has dtype complex128"),
        ({"holdout_x": np.zeros((2, 64))}, "holdout_y is missing"),
    ],
)
def test_wrong_arguments_are_named(arrays, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        linear_probe.score(**{**arrays, **change})


def test_the_import_is_cheap_and_the_help_lists_the_public_names():
    code = "import linear_probe, sys; print(sorted({'torch', 'sklearn', 'faiss', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(linear_probe.__all__) <= set(dir(linear_probe))
    assert all(getattr(linear_probe, name).__doc__ for name in linear_probe.__all__ if name != "PROTOCOLS")
    with pytest.raises(AttributeError, match="it exports"):
        linear_probe.nothing  # noqa: B018
    assert set(linear_probe.MODULES) == set(linear_probe.__all__)


def test_the_example_of_the_docstring_runs():
    from linear_probe import scoring

    assert doctest.testmod(scoring).failed == 0

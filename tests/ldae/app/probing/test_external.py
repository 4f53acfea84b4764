"""Encoders of other programs: a function of the user, a graph in ONNX."""

from __future__ import annotations

import pytest
import torch

from ldae.app.probing.external import function_hash, load_function
from ldae.core.errors import ConfigError
from linear_probe.baselines import PIXELS, raw_pixels
from linear_probe.results import read_results

MODULE = """
import torch
def pixels(images):
    return images.flatten(1)
def arrays(images):
    return images.flatten(1).numpy()
def labels(images):
    return torch.zeros(len(images), 3, dtype=torch.long)
def maps(images):
    return images
def broken(images):
    raise KeyError("weights")
constant = 3
"""
QUICK = ("data=digits", "protocols=[lbfgs,knn]", "baselines=false", "runtime.threads=1", "runtime.progress=false")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "encoder_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "encoder_of_a_user", raising=False)
    return tmp_path


@pytest.mark.parametrize("function", ["pixels", "arrays"])
def test_a_function_is_scored_as_its_features_are(here, in_process, function):
    assert in_process("probe", f"function=encoder_of_a_user:{function}", *QUICK, "out=a")[0] == 0
    assert in_process("probe", "baseline=pixels", *QUICK, "out=b")[0] == 0
    own, known = read_results(here / "a" / "results.jsonl"), read_results(here / "b" / "results-pixels.jsonl")
    assert [r.accuracy for r in own] == [r.accuracy for r in known]
    assert own[0].encoder == f"encoder_of_a_user:{function}"
    assert own[0].dimensions == 192


def test_a_graph_is_scored_as_the_features_that_it_computes(here, in_process):
    pytest.importorskip("onnxruntime")

    class Pixels(torch.nn.Module):
        def forward(self, images):
            return raw_pixels(images)[PIXELS]

    program = torch.export.export(Pixels(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.onnx.export(program, (), "graph.onnx", verbose=False)
    assert in_process("probe", "onnx=graph.onnx", *QUICK, "out=a")[0] == 0
    assert in_process("probe", "baseline=pixels", *QUICK, "out=b")[0] == 0
    own, known = read_results(here / "a" / "results.jsonl"), read_results(here / "b" / "results-pixels.jsonl")
    assert [r.accuracy for r in own] == [r.accuracy for r in known]
    code, message = in_process("probe", "onnx=graph.onnx", "data=photos", "out=c")
    assert (code, "onnx=graph.onnx cannot encode images (128, 3, 32, 32)" in message) == (65, True), message


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (("function=encoder_of_a_user",), 2, "is no MODULE:FUNCTION, e.g. function=my_encoder:features"),
        (("function=no_such_module:f",), 2, "cannot be imported (ModuleNotFoundError"),
        (("function=encoder_of_a_user:absent",), 2, "module encoder_of_a_user has no function absent"),
        (("function=encoder_of_a_user:constant",), 2, "module encoder_of_a_user has no function constant"),
        (("function=encoder_of_a_user:labels",), 2, "returned torch.int64 of shape (128, 3)"),
        (("function=encoder_of_a_user:maps",), 2, "of shape (128, 3, 8, 8) for 128 images; features are"),
        (("function=encoder_of_a_user:broken",), 2, "KeyError: 'weights' (encoder_of_a_user.py, line 12)"),
        (("function=encoder_of_a_user:pixels", "layers=[2]"), 2, "selects among features, and function= has one"),
        (("function=encoder_of_a_user:pixels", "onnx=x"), 2, "cannot go with onnx="),
        (("onnx=absent.onnx",), 65, "onnx=absent.onnx does not exist"),
        (("onnx=encoder_of_a_user.py",), 65, "is no graph that onnxruntime reads"),
    ],
)
def test_what_is_no_encoder_is_refused(here, in_process, argv, code, sentence):
    refused = in_process("probe", *argv, *QUICK, "out=p")
    assert (refused[0], sentence in refused[1]) == (code, True), refused[1]
    assert not list((here / "p").glob("*.jsonl"))


def test_features_are_computed_again_after_the_file_has_changed(here):
    before = function_hash(load_function("encoder_of_a_user:pixels"))
    (here / "encoder_of_a_user.py").write_text(MODULE + "\n# changed\n")
    assert function_hash(load_function("encoder_of_a_user:pixels")) != before
    assert function_hash(torch.relu) != function_hash(torch.abs)
    with pytest.raises(ConfigError):
        load_function(":f")

"""The Python API, as a notebook uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ldae
from ldae.core.errors import CheckpointError, ConfigError

OF_0_1 = Path(__file__).parents[2] / "data" / "run_0.1"
SETTINGS = {"train": {"steps": 6, "batch": 16, "log_every": 1}, "runtime": {"progress": False, "threads": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    return ldae.pretrain("ldae/digits", out=out, **SETTINGS, **{"monitor.num_evals": 1})


def test_a_run_has_an_encoder_metrics_and_a_picture(run):
    encoder = run.encoder()
    images = torch.rand(5, *encoder.image_shape)
    assert encoder(images).shape == (5, 64)
    assert torch.equal(ldae.load_encoder(run.path)(images), encoder(images))
    metrics = run.metrics()
    assert metrics["step"] == [1, 2, 3, 4, 5, 6]
    assert len(metrics["loss"]) == 6
    assert metrics["panel/step"] == [0, 6]
    picture = run.panel()
    assert picture.mode == "RGB"
    assert min(picture.size) > 8
    with pytest.raises(CheckpointError, match=r"has no picture moon; there are: .*"):
        run.panel("moon")


def test_a_finished_run_is_opened_again_without_a_step(run, capsys):
    again = ldae.pretrain("ldae/digits", out=run.path, **SETTINGS, **{"monitor.num_evals": 1})
    assert again.path == run.path
    assert "nothing to do" in capsys.readouterr().out
    assert ldae.Run(run.path).config == run.config


def test_a_mistake_is_an_error_that_names_the_key(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.stepz=3 is not a key.*train\.steps"):
        ldae.pretrain("ldae/digits", out=tmp_path / "r", train={"stepz": 3})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("call", [ldae.Run, ldae.load_encoder])
def test_a_folder_without_a_run_is_refused(tmp_path, call):
    with pytest.raises(CheckpointError, match=r"has no checkpoint|holds no run"):
        call(tmp_path)


def test_a_run_of_version_0_1_is_refused_in_one_sentence(tmp_path, in_process):
    folder = tmp_path / "old"
    shutil.copytree(OF_0_1, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for tool, key in (("pretrain", "out"), ("probe", "run"), ("export", "run"), ("sample", "run")):
        extra = (f"out={tmp_path / 'exported'}",) if tool == "export" else ()
        code, message = in_process(tool, f"{key}={folder}", *extra)
        assert code == 65
        assert message == (
            f"{key}={folder} was written by ldae 0.1, whose runs ldae {ldae.__version__} does not read; "
            "use ldae 0.1.0 for it, or pretrain again"
        )
    with pytest.raises(CheckpointError, match=r"was written by ldae 0\.1"):
        ldae.load_encoder(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


def test_the_folder_is_of_version_0_1():
    config = json.loads((OF_0_1 / "config.json").read_text())
    assert "version" not in str(list(config))
    assert '"metric"' in json.dumps(config)


def test_every_public_name_is_there():
    for name in ldae.__all__:
        assert getattr(ldae, name) is not None
        assert name in dir(ldae)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = ldae.absent

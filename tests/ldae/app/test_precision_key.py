"""The key `precision` in all tools: one name, what config.json keeps of `auto`, what a resumed run computes in."""

from __future__ import annotations

import json

import pytest

from ldae.app.precision import settle_precision
from ldae.engine.precision import multiplies_bf16

HERE = "bf16" if multiplies_bf16("cpu") else "fp32"
OTHER = {"bf16": "fp32", "fp32": "bf16"}[HERE]
TINY = ("experiment=ldae/digits", "train.steps=2", "train.batch=16", "denoiser=vit_64x4", "monitor.num_evals=0")
CPU = "device=cpu"


@pytest.mark.parametrize("root", ["pretrain", "finetune", "train_tokenizer"])
def test_tools_that_train_keep_it_with_the_training(config, root):
    assert config(root, "precision=bf16") == config(root, "train.precision=bf16")
    assert config(root, "precision=bf16")["train"]["precision"] == "bf16"
    assert "precision" not in config(root)


@pytest.mark.parametrize("root", ["probe", "sample", "restore", "likelihood", "search_schedule", "dense", "bench"])
def test_tools_that_run_a_network_know_both_names(config, root):
    assert config(root, "precision=bf16") == config(root, "train.precision=bf16")
    assert config(root)["precision"] == ("fp32" if root == "likelihood" else "auto")


def test_auto_is_settled_at_every_depth(config):
    settled, own = settle_precision(config("pretrain", "tokenizer=vqgan", CPU))
    fit = settled["tokenizer"]["fit"]
    precisions = [settled["train"]["precision"], fit["precision"], fit["perceptual"]["fit"]["precision"]]
    assert precisions == [HERE] * 3 and own.value == HERE  # noqa: PT018
    began, _ = settle_precision(config("pretrain", "tokenizer=vqgan", CPU), {"train": {"precision": OTHER}})
    assert began["train"]["precision"] == OTHER
    assert began["tokenizer"] == settled["tokenizer"]
    given, own = settle_precision(config("pretrain", f"precision={HERE}", CPU), {"train": {"precision": OTHER}})
    assert given["train"]["precision"] == HERE


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path, in_process, capsys):
    out, argv = tmp_path / "run", (*TINY, CPU, "runtime.threads=1", f"out={tmp_path / 'run'}")

    def kept():
        return json.loads((out / "config.json").read_text())["train"]["precision"]

    assert in_process("pretrain", *argv, f"precision={OTHER}")[0] == 0
    assert f"precision {OTHER} (as set)" in capsys.readouterr().out
    (out / "status.json").unlink()  # as if it was killed
    assert in_process("pretrain", *argv) == (0, "")
    assert f"precision {OTHER} (as this run began)" in capsys.readouterr().out
    assert kept() == OTHER
    code, message = in_process("pretrain", *argv, f"train.precision={HERE}")
    assert code == 2
    assert f"train.precision was '{OTHER}', is '{HERE}'" in message


def test_config_json_keeps_what_auto_was(tmp_path, in_process, capsys):
    out = tmp_path / "run"
    assert in_process("pretrain", *TINY, CPU, "runtime.threads=1", f"out={out}")[0] == 0
    assert f"precision {HERE} (this processor" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["train"]["precision"] == HERE

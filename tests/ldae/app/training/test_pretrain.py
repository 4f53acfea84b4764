"""Pretraining from the command line: it resumes bit for bit whatever stopped it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, ROOT, SHORT, as_if_stopped, command, losses, rows, run, status, torchrun
from PIL import Image
from safetensors.torch import load_file

from ldae.app.session import Session
from ldae.app.training.monitors import OnlineFeatures, OnlineProbe, predict_knn
from ldae.export.encoder import load_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    out, _ = run("pretrain", f"out={folder}", *SHORT)
    (folder / "printed.txt").write_text(out)
    return folder


def test_a_run_says_what_it_does_and_what_comes_next(reference):
    lines = (reference / "printed.txt").read_text().splitlines()
    named = {line.split()[0]: line for line in lines if line[0] != " "}
    assert list(named)[:8] == ["data", "network", "recipe", "latent", "precision", "device", "length", "out"]
    assert "1,294 training, 144 hold-out and 359 test images of 8 x 8 pixels, 10 classes" in named["data"]
    assert "12 steps of 64 images (0.6 epochs)" in named["length"]
    assert "1 thread)" in named["device"]
    assert named["out"].split() == ["out", str(reference)]
    assert [shlex.split(line)[-2:] for line in lines[-2:]] == [
        ["probe", f"run={reference}"],
        ["--logdir", str(reference)],
    ]


def test_a_run_leaves_what_it_promises(reference):
    names = {p.name for p in reference.iterdir()}
    assert {
        "checkpoints",
        "config.json",
        "data.json",
        "metrics.jsonl",
        "pictures",
        "status.json",
        "tensorboard",
    } <= names
    assert status(reference) == {"state": "done", "step": 12, "code": 0, "message": ""}
    records = rows(reference)
    assert set(losses(reference)) == set(range(1, 13))
    assert {"loss", "learning_rate", "gradient_norm", "images_per_second", "epoch"} <= set(
        records[-1]
    ) or "monitor" in records[-1]
    assert {row["monitor"] for row in records if "monitor" in row} == {"panel", "knn"}
    assert any("loss_level/0" in row for row in records)
    manifest = json.loads(next((reference / "checkpoints").glob("*12/manifest.json")).read_text())
    assert manifest["peak_rate"] == manifest["config"]["optim"]["blr"] * 64 / 256
    assert {"step", "epoch", "position", "config", "data", "tokenizer", "world", "files"} <= set(manifest)
    events = list((reference / "tensorboard").iterdir())
    assert events[0].stat().st_size > 5000  # with pictures


def test_the_docs_name_every_figure_of_a_run(reference):
    """One name for one thing: in metrics.jsonl, in TensorBoard, in the table."""
    table = (ROOT / "docs" / "pretraining.md").read_text().split("`RUN/metrics.jsonl` | meaning |")[1]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {
        re.sub(r"\d\.\.\d|(?<=/)k(?=_8)", "*", name)
        for name in re.findall(r"`([^`]+)`", " ".join(cells))
        if name != "RUN/pictures"
    }
    scalars = {key for row in rows(reference) for key in row} - {"step", "monitor", "loss_hex"}
    pictures = {path.stem for path in (reference / "pictures").iterdir()}
    logged = {re.sub(r"/\d(?=_8|$)", "/*", name) for name in scalars | pictures}
    assert logged <= named
    switched_on = {"linear_holdout/*", "geometry/*", "loss_level_holdout/*", "cka/layer_N", "cka_layers"}
    switched_on |= {"patch_components", "attention"}  # by monitor.*: test_monitors.py
    assert named - logged - switched_on <= {"original_masked_filled", "psnr_hidden"}  # of a masked autoencoder


def test_knn_is_reported_with_chance_and_the_untrained_network(reference, monkeypatch):
    """The untrained network is the one of the probe's table, after undo_zero_init."""
    first, *_, last = [row for row in rows(reference) if row.get("monitor") == "knn"]
    figures = {f"knn_holdout/{name}" for name in ("model", "untrained", "chance")}
    assert set(first) == set(last) == {"step", "monitor", *figures}
    session = Session(json.loads((reference / "config.json").read_text()))
    splits, untrained = session.splits(), load_run(reference, weights="untrained").objective
    features = OnlineFeatures(session, untrained, splits, 2000, None)
    knn = OnlineProbe("knn", "kNN", features, predict_knn, 1)(0)[0]
    assert knn["knn_holdout/model"] == first["knn_holdout/untrained"] == last["knn_holdout/untrained"]
    commonest = splits.train.own_labels.mode().values
    chance = 100 * (splits.holdout.own_labels == commonest).double().mean().item()
    assert first["knn_holdout/chance"] == pytest.approx(chance)
    assert first["knn_holdout/model"] != first["knn_holdout/untrained"]


def test_a_finished_run_goes_on_where_its_length_is_allowed_to_change(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "r")
    _, err = run("pretrain", f"out={tmp_path / 'r'}", *SHORT, "train.steps=14", "allow=[train.steps]")
    assert max(losses(tmp_path / "r")) == 14
    sentence = r"warning: train.steps=14 changes the length from 12 to 14 steps: at step 12 the learning rate goes from"
    assert re.search(sentence + r" \S+ to \S+\n", err), err


@pytest.mark.parametrize("ends", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_a_run_outlives_whoever_reads_what_it_prints(reference, tmp_path, ends):
    read, write = ends()
    argv = command("pretrain", f"out={tmp_path / 'r'}", *SHORT, "runtime.progress=true")
    process = subprocess.Popen(argv, stdout=write, stderr=write, env={**os.environ, **ENVIRONMENT})
    os.close(write)
    os.close(read)
    assert process.wait(300) == 0
    assert losses(tmp_path / "r") == losses(reference)


def test_another_config_is_refused_unless_allowed_by_name(reference, tmp_path):
    folder = as_if_stopped(reference, tmp_path / "r")
    _, err = run("pretrain", f"out={folder}", *SHORT, "seed=1", "optim.blr=0.5", code=2)
    assert "optim.blr was 0.016, is 0.5; seed was 0, is 1" in err
    assert "allow=[optim.blr,seed]" in err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("train.steps", 5, "less than the 12 steps"), ("train.batch", 5000, "exceeds the")],
)
def test_a_refused_command_leaves_the_run_as_it_was(reference, tmp_path, in_process, key, value, message):
    shutil.copytree(reference, tmp_path / "r")
    before = {name: (tmp_path / "r" / name).read_bytes() for name in ("config.json", "data.json", "status.json")}
    argv = ("experiment=ldae/digits", f"out={tmp_path / 'r'}", *SHORT)
    code, refused = in_process("pretrain", *argv, f"{key}={value}", f"allow=[{key}]")
    assert (code, message in refused) == (2, True), refused
    code, refused = in_process("pretrain", *argv, "seed=3")
    assert (code, "seed was 0, is 3" in refused) == (2, True), refused
    assert before == {name: (tmp_path / "r" / name).read_bytes() for name in before}


def test_keys_of_the_machine_may_change(reference, tmp_path):
    folder = as_if_stopped(reference, tmp_path / "r")
    run("pretrain", f"out={folder}", *SHORT, "train.checkpoint_every=3", "data.workers=0")
    assert losses(folder) == losses(reference)


def test_checkpoints_are_listed_and_verified(reference):
    out, _ = run("checkpoint", "list", reference)
    assert [line.split()[:2] for line in out.splitlines()] == [["step-000000012", "whole"], ["step-000000008", "whole"]]
    run("checkpoint", "verify", reference)


@pytest.mark.dist
def test_two_processes_train_as_one_does(tmp_path):
    """The same global batch, the same noise: losses within 1e-4 over 20 steps."""
    argv = ["train.steps=20", "train.log_every=1", "train.precision=fp32", "monitor.num_evals=2", "runtime.threads=1"]
    run("pretrain", f"out={tmp_path / 'one'}", *argv)
    torchrun("pretrain", f"out={tmp_path / 'two'}", *argv)
    a, b = ({s: float.fromhex(x) for s, x in losses(tmp_path / n).items()} for n in ("one", "two"))
    assert set(a) == set(b) == set(range(1, 21))
    assert max(abs(a[s] - b[s]) for s in a) < 1e-4
    assert a != {s: a[1] for s in a}
    assert status(tmp_path / "two")["state"] == "done"


def tensors(folder):
    """Those of the last checkpoint: weights, averages, moments."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = {name: load_file(last / f"{name}.safetensors") for name in ("model", "ema", "optim")}
    return {f"{name}/{key}": value for name, file in files.items() for key, value in file.items()}


@pytest.mark.dist
@pytest.mark.parametrize(("optim", "atol"), [("adamw", 1e-4), ("muon", 2e-3)])
def test_a_divided_network_trains_as_a_whole_one_does(tmp_path, optim, atol):
    """FSDP2: the same losses, and files of whole tensors that one process alone goes on from.

    Muon orthogonalises in bfloat16: rounding moves matrices by 7e-4, where their largest entry is 0.15.
    """
    argv = ["train.steps=16", "train.log_every=1", "train.precision=fp32", "train.checkpoint_every=8"]
    argv += ["monitor.num_evals=2", "runtime.threads=1", "train.accumulate=2", f"optim={optim}"]
    run("pretrain", f"out={tmp_path / 'one'}", *argv)
    torchrun("pretrain", f"out={tmp_path / 'two'}", *argv, "train.shard=true")
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000000016")
    (tmp_path / "again" / "status.json").unlink()
    run("pretrain", f"out={tmp_path / 'again'}", *argv)
    one = tensors(tmp_path / "one")
    for name in ("two", "again"):
        a, b = ({s: float.fromhex(x) for s, x in losses(tmp_path / n).items()} for n in ("one", name))
        assert max(abs(a[s] - b[s]) for s in b) < 1e-4
        other = tensors(tmp_path / name)
        assert other.keys() == one.keys()
        assert all(torch.allclose(other[key], one[key], atol=atol) for key in one)
    num_evals = [[row for row in rows(tmp_path / n) if "monitor" in row] for n in ("one", "two")]
    assert [row["monitor"] for row in num_evals[0]] == [row["monitor"] for row in num_evals[1]] != []


@pytest.mark.dist
def test_a_batch_that_two_processes_cannot_share_is_refused(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv = command("pretrain", f"out={tmp_path / 'r'}", "train.batch=33", "train.steps=2")[1:]
    done = subprocess.run([*launcher, *argv], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode != 0
    assert "train.batch=33 cannot be shared by 2 processes" in done.stderr
    assert status(tmp_path / "r")["code"] == 2


@pytest.mark.parametrize(("kind", "rank"), [("grey", 16), ("black", 0)])
def test_pictures_whose_patches_have_a_low_rank_are_trained_on_with_a_warning(tmp_path, in_process, capsys, kind, rank):
    generator = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (16, 16), np.uint8) if kind == "grey" else np.zeros((16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    argv = ["experiment=ldae/imagefolder_cpu", f"data.root={tmp_path / 'images'}", f"out={tmp_path / 'r'}"]
    size = ["data.size=16", "data.patch=4", "denoiser=vit_64x4", "train.batch=8", "train.steps=3", "train.log_every=1"]
    assert in_process("pretrain", *argv, *size, "train.precision=fp32", "monitor.num_evals=0") == (0, "")
    assert f"have rank {rank}, fewer than the 32 latent dimensions" in capsys.readouterr().err
    assert all(0 < row["loss"] < 10 for row in rows(tmp_path / "r"))

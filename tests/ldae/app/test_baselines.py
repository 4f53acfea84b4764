"""Competitors of l-DAE from the command line: MAE and the pixel DAE, pretrained and probed."""

from __future__ import annotations

import json

import pytest
from helpers import SHORT, losses, rows, run, weights

QUICK = (*SHORT, "data=digits", "train.compile=false")


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae") / "run"
    run("pretrain", f"out={folder}", "experiment=mae/cifar10_cpu", *QUICK)
    return folder


def scored(folder, *argv):
    out, _ = run("probe", f"run={folder}", "protocols=[knn]", *argv)
    lines = (folder / "probe" / "results.jsonl").read_text().splitlines()
    return out, {r["encoder"]: r for r in map(json.loads, lines)}


def test_mae_is_pretrained_without_a_tokenizer_and_probed(mae):
    assert not (mae / "tokenizer.safetensors").exists()
    manifest = json.loads(next((mae / "checkpoints").glob("*12/manifest.json")).read_text())
    assert manifest["tokenizer"] is None
    assert "tokenizer" not in manifest["config"]
    num_evals = [row for row in rows(mae) if "monitor" in row]
    assert {row["monitor"] for row in num_evals} == {"panel", "knn"}
    assert any("psnr_hidden" in row for row in num_evals)
    assert any("error_visible" in row for row in rows(mae))
    out, results = scored(mae)
    assert "| MAE " in out
    assert set(results) == {"MAE", "the same network, untrained", "raw pixels", "whole-image PCA"}
    best = results["MAE"]
    assert (best["t"], best["input"], best["dimensions"], best["step"]) == (0, "clean", 128, 12)
    assert best["layer"] in (2, 3, 4)
    assert best["checkpoint"] != results["the same network, untrained"]["checkpoint"] == "none"
    assert best["accuracy"] > 20  # ten classes


def test_the_class_token_of_mae_is_probed_alone_and_with_the_patches(mae, in_process, tmp_path):
    for pooling, dimensions in (("cls", 128), ("cls+mean", 256)):
        out = tmp_path / pooling
        argv = (
            "protocols=[knn]",
            f"pooling=[{pooling}]",
            "layers=[4]",
            "baselines=false",
            "split=holdout",
            f"out={out}",
        )
        assert in_process("probe", f"run={mae}", *argv) == (0, "")
        (row,) = [json.loads(line) for line in (out / "results-holdout.jsonl").read_text().splitlines()]
        assert (row["pooling"], row["layer"], row["dimensions"]) == (pooling, 4, dimensions)


def test_mae_resumes_bit_for_bit(mae, tmp_path):
    import shutil

    folder = tmp_path / "r"
    shutil.copytree(mae, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000000012")
    (folder / "status.json").write_text("{}")
    run("pretrain", f"out={folder}", "experiment=mae/cifar10_cpu", *QUICK)
    assert losses(folder) == losses(mae)
    assert weights(folder) == weights(mae)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("t=[10]", "t=10 must be in 0..0"),
        ("inputs=[noised]", "inputs='noised' needs noise, and Masked has none; use inputs=[clean]"),
        ("layers=[5]", "layer=5 is not one of the network's layers 1..4"),
    ],
)
def test_what_mae_does_not_have_is_refused(mae, in_process, word, sentence):
    assert in_process("probe", f"run={mae}", word) == (2, sentence)


def test_the_pixel_dae_is_pretrained_and_probed(tmp_path):
    folder = tmp_path / "r"
    run("pretrain", f"out={folder}", "experiment=dae_pixel/cifar10_cpu", *QUICK)
    assert (folder / "tokenizer.safetensors").exists()
    hex_losses = losses(folder)
    assert float.fromhex(hex_losses[12]) < float.fromhex(hex_losses[1])
    out, results = scored(folder, "baselines=false")
    assert "| pixel DAE " in out
    assert (results["pixel DAE"]["t"], results["pixel DAE"]["layer"] in range(2, 7)) == (10, True)

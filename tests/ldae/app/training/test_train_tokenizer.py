"""train_tokenizer.py and pretraining on what it leaves behind, run as a user does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SHORT, losses, rows, run, start, status, torchrun
from PIL import Image

from ldae.core.files import load_tensors, save_tensors
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.public import DIFFUSERS, to_layout

TINY = (
    "tokenizer.channels=8",
    "tokenizer.multipliers=[1,2]",
    "tokenizer.fit.steps=8",
    "tokenizer.fit.images=200",
    "train.log_every=1",
    "train.checkpoint_every=3",
    "runtime.threads=1",
)
GAN = (
    "tokenizer.fit.discriminator.start=4",
    "tokenizer.fit.discriminator.channels=8",
    "tokenizer.fit.discriminator.strides=1",
)
NARROW = ("denoiser.width=32", "denoiser.heads=2", "denoiser.encoder_depth=1", "denoiser.decoder_depth=1")
CLASSIFIER = ("tokenizer.fit.perceptual.channels=[8,8]", "tokenizer.fit.perceptual.fit.steps=6")


@pytest.mark.parametrize("kind", ["vqgan", "vq"])
def test_two_modules_and_a_classifier_are_trained_by_one_command(tmp_path, kind):
    out, _ = run("train_tokenizer", f"tokenizer={kind}", *TINY, *GAN, *CLASSIFIER, f"out={tmp_path / 'a'}")
    loss_rows = [row for row in rows(tmp_path / "a") if "tokenizer/loss" in row]
    assert ["discriminator/loss" in row for row in loss_rows] == [False] * 4 + [True] * 4
    assert all("tokenizer/perceptual" in row for row in loss_rows)
    quality = json.loads((tmp_path / "a" / "reconstruction.json").read_text())
    assert quality["split"] == "holdout"
    assert f"psnr {quality['psnr']:.4g}" in out
    assert ("codes_used" in quality) == (kind == "vq")
    assert {"tokenizer.safetensors", "reconstruction.png", "filters.png"} <= {
        p.name for p in (tmp_path / "a").iterdir()
    }
    assert status(tmp_path / "a")["state"] == "done"


def test_the_classifier_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    argv = ("tokenizer=vqgan", *TINY, *GAN, *CLASSIFIER)
    _, first = run("train_tokenizer", *argv, f"out={tmp_path / 'a'}")
    _, second = run("train_tokenizer", *argv, f"out={tmp_path / 'b'}")
    assert "training a classifier" in first
    assert "training a classifier" not in second
    assert rows(tmp_path / "a")[-2]["tokenizer/loss_hex"] == rows(tmp_path / "b")[-2]["tokenizer/loss_hex"]


def test_a_killed_tokenizer_goes_on_to_the_same_weights(tmp_path):
    argv = ("tokenizer=kl_gan", *TINY, *GAN, "tokenizer.fit.steps=60")
    run("train_tokenizer", *argv, f"out={tmp_path / 'straight'}")
    killed = tmp_path / "killed"
    process = start("train_tokenizer", *argv, f"out={killed}")
    while not list(killed.glob("checkpoints/step-*6")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert status(killed)["state"] == "running"
    run("train_tokenizer", *argv, f"out={killed}")
    straight, resumed = (load_tensors(tmp_path / name / "tokenizer.safetensors") for name in ("straight", "killed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_trained_tokenizer_is_trained_further_and_measured_on_the_test_split(tmp_path):
    run("train_tokenizer", "tokenizer=conv_vae", *TINY, f"out={tmp_path / 'a'}")
    more = ("tokenizer=kl_gan", *TINY, "tokenizer.fit.discriminator.start=0", "tokenizer.fit.discriminator.strides=1")
    run("train_tokenizer", *more, f"tokenizer.weights={tmp_path / 'a'}", "split=test", f"out={tmp_path / 'b'}")
    a, b = (json.loads((tmp_path / name / "reconstruction.json").read_text()) for name in "ab")
    assert b["split"] == "test"
    begun = next(r["tokenizer/pixel"] for r in rows(tmp_path / "b") if "tokenizer/pixel" in r)
    fresh = next(r["pixel"] for r in rows(tmp_path / "a") if "pixel" in r)
    assert begun < fresh  # it went on, not from the start
    assert a["images"] != b["images"]


def test_public_weights_are_taken_as_they_are(tmp_path):
    """As DiT takes Stable Diffusion's autoencoder: no training, the latent scale measured on this data."""
    torch.manual_seed(0)
    theirs = ConvVAE((3, 8, 8), 4, 8, [1, 2])
    save_tensors(tmp_path / "vae.safetensors", to_layout(theirs, DIFFUSERS))
    argv = ("tokenizer=conv_vae", "tokenizer.z_channels=4", *TINY[:2], "tokenizer.fit.steps=0")
    run("train_tokenizer", *argv, f"tokenizer.weights={tmp_path / 'vae.safetensors'}", f"out={tmp_path / 'a'}")
    tensors = load_tensors(tmp_path / "a" / "tokenizer.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in theirs.named_parameters())
    assert bool(tensors["fitted"])
    assert tensors["scale"].unique().numel() == 1
    assert tensors["scale"][0].item() != 1


def test_the_first_rung_runs_and_its_latents_are_kept(tmp_path, monkeypatch):
    """Class-conditioned DiT on a VQGAN's latents: the tokenizer is made on the way, latents are encoded once."""
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    argv = ("experiment=deconstruct/00_dit", "data=digits", *SHORT, *NARROW, *TINY[:4], *GAN, *CLASSIFIER)
    _, stderr = run("pretrain", *argv, f"out={tmp_path / 'a'}")
    assert "fitting the tokenizer ConvVAE" in stderr
    assert "encoding 1294 images once" in stderr
    _, stderr = run("pretrain", *argv, f"out={tmp_path / 'b'}")
    assert stderr.strip() == ""
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    (kept,) = (Path(os.environ["LDAE_CACHE"]) / "latents").glob("*/latents.npy")
    kept.write_bytes(kept.read_bytes()[:-1])
    _, stderr = run("pretrain", *argv, f"out={tmp_path / 'c'}")
    assert "are damaged; they are encoded again" in stderr
    assert losses(tmp_path / "a") == losses(tmp_path / "c")


def test_kept_latents_give_the_losses_of_latents_encoded_anew(tmp_path):
    argv = ("experiment=deconstruct/04_linear_gamma2", "data=digits", *SHORT, *NARROW, *TINY[:4])
    for choice in ("auto", "never"):
        run("pretrain", *argv, "train.precision=fp32", f"latents={choice}", f"out={tmp_path / choice}")
    kept, anew = ([r["loss"] for r in rows(tmp_path / c) if "loss" in r] for c in ("auto", "never"))
    np.testing.assert_allclose(kept, anew, rtol=1e-4)


@pytest.mark.dist
def test_two_processes_train_a_tokenizer_as_one_does(tmp_path):
    argv = ("tokenizer=conv_vae", *TINY, "tokenizer.fit.precision=fp32")
    run("train_tokenizer", *argv, f"out={tmp_path / 'one'}")
    torchrun("train_tokenizer", *argv, f"out={tmp_path / 'two'}")
    one, two = ([r["loss"] for r in rows(tmp_path / name) if "loss" in r] for name in ("one", "two"))
    assert len(one) == len(two) == 8
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)
    assert one[0] != one[-1]


@pytest.mark.dist
def test_two_processes_train_two_modules_and_a_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    torchrun("train_tokenizer", "tokenizer=vqgan", *TINY, *GAN, *CLASSIFIER, f"out={tmp_path / 'a'}")
    assert status(tmp_path / "a")["state"] == "done"
    loss_rows = [row for row in rows(tmp_path / "a") if "discriminator/loss" in row]
    assert len(loss_rows) == 4


def test_mistakes_are_named(tmp_path):
    _, error = run(
        "train_tokenizer",
        "tokenizer=imagenet_kl_f8",
        "data=imagefolder",
        f"out={tmp_path}",
        code=2,
        TORCH_HOME=str(tmp_path),
    )
    assert "tokenizer.fit.perceptual.vgg" in error
    _, error = run("train_tokenizer", "split=train", f"out={tmp_path}", code=2)
    assert "split" in error
    _, error = run(
        "train_tokenizer", "tokenizer=conv_vae", "tokenizer.multipliers=[1,2,2,2,2]", f"out={tmp_path}", code=2
    )
    assert "must divide data.size" in error
    _, error = run("pretrain", "latents=always", "experiment=deconstruct/04_linear_gamma2", "data=digits", code=2)
    assert "latents" in error


def test_a_tokenizer_that_needs_no_fit_gets_along(tmp_path):
    out, _ = run("train_tokenizer", "tokenizer=identity", f"out={tmp_path / 'a'}")
    assert "latents 3 x 8 x 8" in out
    assert json.loads((tmp_path / "a" / "reconstruction.json").read_text())["psnr"] == 120
    argv = ("tokenizer=identity", "loss=l2", "train.steps=2", "train.batch=16", "monitor.num_evals=0")
    run("pretrain", *argv, f"out={tmp_path / 'b'}")
    run("pretrain", *argv, f"tokenizer.weights={tmp_path / 'a'}", f"out={tmp_path / 'c'}")
    assert losses(tmp_path / "b") == losses(tmp_path / "c")


def test_a_tokenizer_is_fitted_on_what_the_task_noises(tmp_path, monkeypatch):
    """A segmentation's is fitted on masks of one channel, and kept apart from one that was fitted on the images."""
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    for i in range(24):
        for kind, mode, shade in (("images", "RGB", (i, 255 - i, 7)), ("masks", "L", 255 * (i % 3 == 0))):
            path = tmp_path / "figures" / "train" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (8, 8), shade).save(path)
    argv = ("data=horses", f"data.root={tmp_path / 'figures'}", "data.size=8", "data.test=0", "data.holdout=0")
    steps = ("tokenizer=pixel", "loss=l2", "train.steps=2", "train.batch=8", "monitor.num_evals=0")
    for task, mean in (("segmentation", -1 / 3), ("images", None)):
        run("pretrain", *argv, *steps, f"task={task}", f"out={tmp_path / task}")
        fitted_mean = load_tensors(tmp_path / task / "tokenizer.safetensors")["mean"].flatten()
        assert fitted_mean.numel() == (48 if mean is None else 16)
        assert mean is None or fitted_mean.tolist() == pytest.approx([mean] * 16, abs=1e-6)


def test_a_task_that_needs_pixels_keeps_no_latents(tmp_path):
    argv = ("experiment=deconstruct/04_linear_gamma2", "data=digits", *TINY[:4], "train.steps=2", "monitor.num_evals=0")
    _, stderr = run("pretrain", *argv, "task=super_resolution", f"out={tmp_path}")
    assert "encoding" not in stderr
    assert status(tmp_path)["state"] == "done"

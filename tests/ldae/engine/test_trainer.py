"""The training loop: golden losses, resuming bit for bit, accumulation, stopping."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ldae.config.build import Parts
from ldae.core.errors import ConfigError, Interrupted, NonFiniteError, OutputError, UsageError
from ldae.data.cache import Context
from ldae.data.datasets import Digits, Division, ImageFolder
from ldae.data.loader import Loader
from ldae.data.transforms import PadCrop, RandomResizedCrop
from ldae.engine.checkpoint import newest
from ldae.engine.distributed import World
from ldae.engine.ema import EMA
from ldae.engine.logging import truncate_metrics
from ldae.engine.optim import AdamW, Muon
from ldae.engine.run_folder import RunFolder, check_same_config
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.trainer import RunContext, Trainer
from ldae.nn.patch_gan import PatchGAN
from ldae.objectives.autoencode import Autoencode
from ldae.tasks.images import Images
from ldae.tokenizers.conv_vae import ConvVAE

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.json"
CPU = torch.device("cpu")


def trainer(config, path, *, argv=(), seed=0, monitors=(), stop=None, wrap=None, optim=None, **settings):
    """A trainer of a tiny l-DAE on digits; everything as pretrain.py does it."""
    system = Parts(config("pretrain", *argv))
    torch.manual_seed(seed)
    images = Digits(8, Division()).open(Context(path)).train
    if (tokenizer := system.objective.tokenizer) is not None:
        tokenizer.fit([2 * images.pixels[images.ids].float() / 255 - 1])
    loader = Loader(images, PadCrop(1), 64, seed, CPU)
    chosen = {"batch": 64, "steps": 10, "precision": "fp32", "log_every": 1, "checkpoint_every": 4} | settings
    module = system.objective if wrap is None else wrap(system.objective)
    run = RunFolder(path)
    path.mkdir(exist_ok=True)
    return Trainer(
        {"model": module},
        loader,
        optim or AdamW(blr=4e-3),
        TrainSettings(**chosen),
        seed,
        RunContext(run, World(CPU), {"config": {}}, monitors, stop or StopFlag()),
    )


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def losses(path):
    return [row["loss_hex"] for row in rows(path) if "loss_hex" in row]


def weights(path):
    checkpoint = newest(path / "checkpoints")
    return {name: checkpoint.tensors(name) for name in ("model", "ema", "optim")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[f][k], b[f][k]) for f in a for k in a[f])


RUNS = [(), ("experiment=deconstruct/07_patch_pca", "data=digits"), ("experiment=mae/cifar10_cpu", "data=digits")]


@pytest.mark.parametrize("argv", RUNS)
def test_losses_are_the_golden_ones(config, tmp_path, argv):
    """Written by the commit that last meant to change them; set LDAE_WRITE_GOLDEN=1 to write them again."""
    trainer(config, tmp_path, argv=argv).fit()
    train_losses = [row["loss"] for row in rows(tmp_path)]
    name = argv[0] if argv else "ldae/digits"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LDAE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: train_losses}, indent=1) + "\n")
    assert train_losses == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=2e-4)
    assert train_losses[-1] < train_losses[0]


def test_two_runs_are_one(config, tmp_path):
    for name in "ab":
        trainer(config, tmp_path / name).fit()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    trainer(config, tmp_path / "c", seed=1).fit()
    assert losses(tmp_path / "c") != losses(tmp_path / "a")


@pytest.mark.parametrize("argv", RUNS[:2])
def test_activations_computed_again_take_less_memory_and_change_no_bit(config, tmp_path, argv):
    kept = {}
    for recompute in (False, True):
        training = trainer(config, tmp_path / str(recompute), argv=argv, recompute=recompute)
        training.fit()
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(functools.partial(keep, storages), lambda t: t):
            training.train_step(next(training.loader.batches(0)))
        kept[recompute] = sum(storages.values())
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))
    assert kept[True] < kept[False] / 3


def keep(storages, tensor):
    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


class StopAt:
    """Monitor that sets the stop flag before the step `at` is made."""

    name, every = "stop", 1

    def __init__(self, flag, at):
        self.flag, self.at = flag, at

    def __call__(self, step):
        if step == self.at:
            self.flag.signal_name = "SIGTERM"
        return {}, {}


@pytest.mark.parametrize("at", [0, 3, 4, 9])
def test_stopped_and_resumed_is_straight(config, tmp_path, at):
    trainer(config, tmp_path / "straight").fit()
    flag = StopFlag()
    with pytest.raises(Interrupted, match="SIGTERM"):
        trainer(config, tmp_path / "halted", monitors=[StopAt(flag, at)], stop=flag).fit()
    assert len(losses(tmp_path / "halted")) == at + 1
    trainer(config, tmp_path / "halted").fit()
    assert losses(tmp_path / "halted") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "halted"), weights(tmp_path / "straight"))


@pytest.mark.parametrize("argv", [RUNS[0], RUNS[2]])
def test_muon_stopped_and_resumed_is_straight(config, tmp_path, argv):
    train = functools.partial(trainer, config, argv=argv, optim=Muon(blr=4e-3, weight_decay=0.05))
    train(tmp_path / "straight").fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", monitors=[StopAt(flag, 5)], stop=flag).fit()
    train(tmp_path / "stopped").fit()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
    moments = weights(tmp_path / "straight")["optim"]
    assert "model.momentum_buffer.blocks.0.mlp.fc1.weight" in moments
    assert "model.exp_avg.embed.weight" in moments
    first, *_, last = rows(tmp_path / "straight")
    assert last["loss"] < first["loss"]


CLEAN = ("experiment=deconstruct/08_clean_latent", "data=digits", "denoiser=vit_64x4", "weight=one")
MASKED = [(*CLEAN, "denoiser.keep=0.5", "timesteps.clean=0.5"),
          (*CLEAN, "corruption=component_mask", "data.d=3", "corruption.noise=true")]  # fmt: skip


@pytest.mark.parametrize("argv", MASKED)
def test_masked_training_stopped_and_resumed_is_straight(config, tmp_path, argv):
    trainer(config, tmp_path / "straight", argv=argv).fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        trainer(config, tmp_path / "stopped", argv=argv, monitors=[StopAt(flag, 5)], stop=flag).fit()
    trainer(config, tmp_path / "stopped", argv=argv).fit()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
    first, *_, last = rows(tmp_path / "straight")
    assert last["loss"] < first["loss"]


DIT = ("task=labelled", "denoiser=dit_128x8", "input=latent", "output=latent", "target=eps",
       "objective=learned_variance", "schedule=ddpm_linear", "weight=one", "loss=l2")  # fmt: skip


def test_a_dit_learns_and_resumes_with_the_same_labels_withheld(config, tmp_path):
    trainer(config, tmp_path / "straight", argv=DIT).fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        trainer(config, tmp_path / "halted", argv=DIT, monitors=[StopAt(flag, 3)], stop=flag).fit()
    trainer(config, tmp_path / "halted", argv=DIT).fit()
    assert losses(tmp_path / "halted") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "halted"), weights(tmp_path / "straight"))
    records = rows(tmp_path / "straight")
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(0 < row["vb"] < row["loss"] for row in records)
    trainer(config, tmp_path / "parts", argv=DIT, accumulate=2).fit()
    assert [r["loss"] for r in rows(tmp_path / "parts")] == pytest.approx([r["loss"] for r in records], rel=1e-4)


def test_a_lost_checkpoint_costs_its_interval_and_nothing_else(config, tmp_path):
    trainer(config, tmp_path / "straight").fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        trainer(config, tmp_path / "halted", monitors=[StopAt(flag, 8)], stop=flag).fit()
    last = sorted((tmp_path / "halted" / "checkpoints").glob("step-*"))[-1]
    (last / "model.safetensors").write_bytes(b"")
    trainer(config, tmp_path / "halted").fit()
    assert losses(tmp_path / "halted") == losses(tmp_path / "straight")
    assert same(weights(tmp_path / "halted"), weights(tmp_path / "straight"))


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_parts_are_the_whole_batch(config, tmp_path, parts):
    trainer(config, tmp_path / "whole").fit()
    trainer(config, tmp_path / "parts", accumulate=parts).fit()
    a, b = ([row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "parts"))
    assert a == pytest.approx(b, rel=1e-4)


def test_parts_that_cannot_share_the_noise_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch=64 cannot be shared by 1 processes x accumulate=3"):
        trainer(config, tmp_path, accumulate=3)


def test_bf16_learns_as_fp32_does(config, tmp_path):
    for precision in ("fp32", "bf16"):
        trainer(config, tmp_path / precision, precision=precision, steps=40).fit()
    a, b = ([row["loss"] for row in rows(tmp_path / name)] for name in ("fp32", "bf16"))
    assert a[-10:] == pytest.approx(b[-10:], rel=0.02)
    assert a != b


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_have_the_golden_losses(config, tmp_path):
    compiled = trainer(config, tmp_path, compile=True)
    compiled.fit()
    assert all(block._compiled_call_impl is not None for block in compiled.state.networks["model"].blocks)
    golden = json.loads(GOLDEN.read_text())["ldae/digits"]
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(golden, rel=2e-4)


def duel(config, path, *, start=3, stop=None, monitors=(), **settings):
    """A trainer of two modules: a small convolutional VAE and a discriminator that joins at step `start`."""
    torch.manual_seed(0)
    images = Digits(8, Division()).open(Context(path)).train
    vae = ConvVAE((3, 8, 8), z_channels=2, channels=8, multipliers=[1, 2])
    trainable_modules = Autoencode(Images(), vae, None, PatchGAN(8, 1, 0.5, start)).trainable_modules
    chosen = {"batch": 16, "steps": 10, "precision": "fp32", "log_every": 1, "checkpoint_every": 4} | settings
    path.mkdir(exist_ok=True)
    job = RunContext(RunFolder(path), World(CPU), {"config": {}}, monitors, stop or StopFlag())
    return Trainer(
        trainable_modules, Loader(images, PadCrop(1), 16, 0, CPU), AdamW(blr=2e-2), TrainSettings(**chosen), 0, job
    )


def duelling_losses(path):
    return [(row.get("tokenizer/loss_hex"), row.get("discriminator/loss_hex")) for row in rows(path)]


@pytest.mark.parametrize("at", [2, 3, 6])
def test_two_modules_stopped_and_resumed_are_bit_for_bit_the_same(config, tmp_path, at):
    duel(config, tmp_path / "straight").fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        duel(config, tmp_path / "stopped", stop=flag, monitors=[StopAt(flag, at)]).fit()
    duel(config, tmp_path / "stopped").fit()
    assert duelling_losses(tmp_path / "stopped") == duelling_losses(tmp_path / "straight")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))
    assert any(name.startswith("discriminator.exp_avg.") for name in weights(tmp_path / "stopped")["optim"])


def test_an_inactive_module_is_not_updated_and_reports_nothing(config, tmp_path):
    late, never = duel(config, tmp_path / "late", start=3), duel(config, tmp_path / "never", start=99)
    begun = {k: v.clone() for k, v in late.state.networks["discriminator"].state_dict().items()}
    for one in (late, never):
        one.fit()
    assert [bool(d) for _, d in duelling_losses(tmp_path / "late")] == [False] * 3 + [True] * 7
    a, b = (duelling_losses(tmp_path / name) for name in ("late", "never"))
    assert a[:3] == b[:3]  # until then nothing differs, and it is the tokenizer's own step that counts
    assert a[3][0] != b[3][0]
    assert all(torch.equal(begun[k], v) for k, v in never.state.networks["discriminator"].state_dict().items())
    assert not all(torch.equal(begun[k], v) for k, v in late.state.networks["discriminator"].state_dict().items())


def test_two_modules_accumulate_gradients_in_parts(config, tmp_path):
    """BatchNorm's moments differ in the parts of a batch, so losses are not compared: both learn from all parts."""
    duel(config, tmp_path, start=0, accumulate=2, steps=2).fit()
    assert all(t and d for t, d in duelling_losses(tmp_path))


class Poisoned(nn.Module):
    """A module whose loss is NaN at its third call."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.network, self.calls = inner, inner.network, 0
        self.describe, self.is_active = inner.describe, inner.is_active

    def forward(self, batch, rng):
        self.calls += 1
        loss, metrics = self.inner(batch, rng)
        return loss * (math.nan if self.calls == 3 else 1), metrics


def test_a_nan_stops_before_the_step_and_names_the_images(config, tmp_path):
    broken = trainer(config, tmp_path, wrap=Poisoned, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match="step 3; the step was not made"):
        broken.fit()
    assert newest(tmp_path / "checkpoints").step == 2
    good = newest(tmp_path / "checkpoints").tensors("model")
    assert all(torch.equal(good[f"model.{k}"], v) for k, v in broken.state.networks["model"].state_dict().items())
    report = json.loads((tmp_path / "nonfinite-rank0.json").read_text())
    assert report["step"] == 3
    assert len(report["images"]) == 64
    assert all(name.startswith("digit-") for name in report["images"])
    assert len(report["levels"][0]["sigma"]) == 64


def test_an_error_that_is_kept_keeps_no_process_that_reads_images(config, tmp_path):
    broken = trainer(config, tmp_path / "run", wrap=Poisoned)
    (folder := tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(128):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"{i:03d}.png")
    images = ImageFolder(8, Division(), str(folder.parent), "stream").open(Context(tmp_path / "cache", 0)).train
    broken.loader = Loader(images, RandomResizedCrop(), 64, 0, CPU, workers=2)
    with pytest.raises(NonFiniteError) as kept:
        broken.fit()
    assert kept.tb is not None
    assert not multiprocessing.active_children()


def test_gradients_are_clipped_to_the_norm(config, tmp_path):
    one = trainer(config, tmp_path / "a", clip=1e-3, steps=1)
    one.fit()
    assert nn.utils.get_total_norm([p.grad for p in one.state.weights.values()]) == pytest.approx(1e-3, rel=1e-3)
    free = trainer(config, tmp_path / "b", clip=0.0, steps=1)
    free.fit()
    assert rows(tmp_path / "a")[0]["gradient_norm"] == rows(tmp_path / "b")[0]["gradient_norm"] > 1e-3


def test_the_rate_warms_up_linearly_and_falls_along_half_a_cosine():
    optim = AdamW(blr=1e-4, warmup=0.25, final=0.1)
    assert optim.peak(2048) == pytest.approx(8e-4)
    rates = [optim.rate(step, 400, 2048) for step in range(400)]
    assert rates[0] == pytest.approx(8e-4 / 100)
    assert rates[49] == pytest.approx(4e-4)
    assert rates[100] == pytest.approx(8e-4)
    assert rates[250] == pytest.approx(8e-4 * (0.1 + 0.9 / 2))
    assert min(rates[100:]) == rates[-1] == pytest.approx(8e-5, rel=1e-2)


def test_weights_decay_and_biases_do_not():
    groups = AdamW(blr=1e-3, weight_decay=0.1).build(nn.Linear(3, 2)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.1, [2]), (0.0, [1])]


def test_ema_of_a_constant_is_the_closed_form():
    weight = torch.zeros(3)
    ema = EMA({"w": weight}, decay=0.9)
    weight.fill_(2.0)
    kept = 1.0
    for step in range(1, 400):
        ema.update(step)
        kept *= min(0.9, (1 + step) / (10 + step))
        if step in (5, 50):
            assert torch.allclose(ema.average["w"], torch.full((3,), 2 * (1 - kept)), rtol=1e-5)
    assert torch.allclose(ema.average["w"], weight)
    with ema.applied():
        weight_inside = weight.clone()
    assert torch.equal(weight_inside, ema.average["w"])
    assert torch.equal(weight, torch.full((3,), 2.0))


def test_ema_without_decay_is_the_weights():
    weight = torch.zeros(3)
    ema = EMA({"w": weight}, decay=0.0)
    weight.fill_(5.0)
    ema.update(1)
    assert torch.equal(ema.average["w"], weight)


def test_positions_are_not_averaged_and_have_no_gradient(config, tmp_path):
    made = trainer(config, tmp_path)
    assert not any("positions" in name for name in [*made.state.weights, *made.state.ema.average])
    assert not made.state.networks["model"].positions.requires_grad


def test_a_finished_run_stays_as_it_is(config, tmp_path):
    trainer(config, tmp_path).fit()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*.safetensors")}
    trainer(config, tmp_path).fit()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*.safetensors")}
    assert len(losses(tmp_path)) == 10


def test_another_length_is_said_with_both_rates_and_a_shorter_one_refused(config, tmp_path, capsys):
    trainer(config, tmp_path).fit()
    with pytest.raises(ConfigError, match=r"train\.steps=8 is less than the 10 steps that this run has made"):
        trainer(config, tmp_path, steps=8).fit()
    assert capsys.readouterr().err == ""
    trainer(config, tmp_path, steps=20).fit()
    optim = AdamW(blr=4e-3)
    rates = f"{optim.rate(9, 10, 64):.3g} to {optim.rate(10, 20, 64):.3g}"
    assert f"from 10 to 20 steps: at step 10 the learning rate goes from {rates}" in capsys.readouterr().err
    assert len(losses(tmp_path)) == 20


class Worsening:
    """An objective whose loss is multiplied by more at every step."""

    def __init__(self, objective):
        self.objective, self.network, self.factor = objective, objective.network, 1.0

    def __call__(self, batch, rng):
        self.factor *= 1.5
        loss, metrics = self.objective(batch, rng)
        return self.factor * loss, metrics

    def __getattr__(self, name):
        return getattr(self.objective, name)


@pytest.mark.parametrize("wrap", [None, Worsening])
def test_a_loss_that_ends_above_its_start_is_said(config, tmp_path, capsys, wrap):
    trainer(config, tmp_path, wrap=wrap).fit()
    first, last = (float.fromhex(losses(tmp_path)[k]) for k in (0, -1))
    message = f"warning: the loss ends at {last:.4g}, above {first:.4g} at its start"
    assert (message in capsys.readouterr().err) is (wrap is not None)


def test_rows_beyond_the_step_and_torn_ones_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 1}, {"step": 2, "loss": 1}, {"step": 2, "monitor": "knn"}, {"step": 3, "loss": 1}]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 4, "lo')
    truncate_metrics(path, 2)
    assert [json.loads(x) for x in path.read_text().splitlines()] == lines[:2]


def test_a_signal_sets_the_flag_and_handlers_come_back():
    flag, before = StopFlag(), signal.getsignal(signal.SIGTERM)
    with flag.listening():
        flag.poll()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            flag.poll()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_is_held_by_one(tmp_path):
    first, second = RunFolder(tmp_path / "r"), RunFolder(tmp_path / "r")
    first.acquire()
    with pytest.raises(OutputError, match="held by another process"):
        second.acquire()
    first.release()
    second.acquire()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "r").acquire()


def test_another_config_is_refused_by_name():
    saved, current = {"a": {"b": 1, "c": 2}, "seed": 0}, {"a": {"b": 1, "c": 3}, "seed": 1}
    with pytest.raises(UsageError, match=r"a\.c was 2, is 3; seed was 0, is 1\. .*allow=\[a\.c,seed\]"):
        check_same_config(saved, current, ignored=[])
    check_same_config(saved, current, ignored=["a", "seed"])


@pytest.mark.parametrize("lengths", [{}, {"steps": 3, "epochs": 2.0}])
def test_a_run_has_one_length(lengths):
    with pytest.raises(ConfigError, match="give one of the two"):
        TrainSettings(batch=4, **lengths)

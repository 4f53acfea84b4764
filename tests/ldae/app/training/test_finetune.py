"""ldae finetune on the embedded digits."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import SHORT, run

from ldae.export.encoder import load_encoder
from ldae.export.fold import plain_vit
from linear_probe.results import read_results

QUICK = ("train.batch=64", "train.log_every=1", "num_evals=1", "runtime.threads=1")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    run("pretrain", f"out={out}", *SHORT)
    return out


def test_a_classifier_is_initialised_as_the_folded_encoder(pretrained):
    encoder = load_encoder(pretrained)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = plain_vit(encoder, num_classes=7, fc_norm=True, drop_path_rate=0.1)
    assert torch.allclose(network.forward_features(2 * images - 1).mean(1), encoder(images), atol=1e-4)
    assert network(images).shape == (5, 7)


def test_fine_tuning_learns_says_all_and_is_done_once(pretrained, tmp_path):
    argv = (f"run={pretrained}", f"out={tmp_path / 'a'}", "train.epochs=12", "optim.blr=1.2e-2", *QUICK)
    argv += ("augment=flip", "augment.flip=0", "mixup=0", "cutmix=0")
    output, _ = run("finetune", *argv)
    result = read_results(tmp_path / "a" / "results.jsonl")[0]
    assert result.accuracy > 60  # chance is 10
    assert f"{result.accuracy:.2f} %" in output
    assert (result.split, result.protocol, result.seed) == ("test", "finetune", 0)
    begun = json.loads((tmp_path / "a" / "config.json").read_text())
    assert begun["encoder"] == result.checkpoint
    assert "nothing to do" in run("finetune", *argv)[0]
    assert "seed" in run("finetune", *argv, "seed=1", code=2)[1]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.batch=63", "mixed in pairs"),
        ("layer=99", "is not one of"),
        ("drop_path=1", "drop_path"),
        ("t=5000", "t"),
    ],
)
def test_what_cannot_be_tuned_is_refused(pretrained, in_process, tmp_path, word, sentence):
    code, message = in_process("finetune", f"run={pretrained}", f"out={tmp_path}", word)
    assert code == 2
    assert sentence in message


def test_a_missing_run_is_one_sentence(in_process):
    assert in_process("finetune")[0] == 2


def test_a_masked_autoencoder_is_fine_tuned_with_a_new_norm_in_place_of_its_last(tmp_path, in_process):
    argv = ("experiment=mae/cifar10_cpu", "data=digits", "denoiser.width=32", "denoiser.heads=2", *SHORT)
    argv += ("train.steps=2", "monitor.num_evals=0", "train.compile=false")
    assert in_process("pretrain", f"out={tmp_path / 'mae'}", *argv) == (0, "")
    argv = (f"run={tmp_path / 'mae'}", f"out={tmp_path / 'out'}", *QUICK, "train.steps=2", "train.precision=fp32")
    assert in_process("finetune", *argv) == (0, "")
    assert read_results(tmp_path / "out" / "results.jsonl")[0].encoder == "MAE"

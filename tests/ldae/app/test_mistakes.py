"""Mistakes on the command line: exit code, one sentence with key, value and what would do, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ENVIRONMENT, ROOT, run

from ldae.app.cli import find, guarded
from ldae.core.errors import UsageError
from ldae.core.files import wrap_error

MISTAKES = [
    (("train.stepz=3",), "train.stepz=3 is not a key of this config; did you mean train.steps?"),
    (("experiment=ldae/digit",), "experiment=ldae/digit does not exist; there are: .* did you mean 'ldae/digits'?"),
    (("tokenizer=patch_pcs",), "tokenizer=patch_pcs does not exist; .* did you mean 'patch_pca'?"),
    (("steps=5",), "steps=5 is not a key of this config; did you mean train.steps[?]$"),
    (("weight.cap=5",), "weight.cap=5 is not a key of this config; it belongs to weight=min_snr$"),
    (("+x=1",), "only KEY=VALUE is understood"),
    (("seed=1,2",), "one value each"),
    (("words",), "'words' is not KEY=VALUE; write KEY=VALUE, e.g. train.steps=5; --help names the keys"),
    (("--steps", "5"), "'--steps' is not KEY=VALUE; write KEY=VALUE, e.g. train.steps=5$"),
    (("--batch-size=64",), "'--batch-size=64' is not KEY=VALUE; write KEY=VALUE, e.g. train.batch=64$"),
    (("-x",), "'-x' is not KEY=VALUE; write KEY=VALUE"),
    (("seed=1=2",), "seed='1=2' must be a whole number"),
    (("allow=[a=b]",), r"'allow=\[a=b\]' cannot be read; quote each text .* e.g. 'allow=\[\"a=b\",\"c, d\"\]'"),
    (("optim.blr=abc",), "optim.blr='abc' must be a number"),
    (("optim.blr=-1",), "optim.blr=-1.0 must be above 0"),
    (("optim.blr=nan",), "optim.blr=nan must be a finite number"),
    (("train.steps=0",), "train.steps=0 must be at least 1"),
    (("train.batch=-4",), "train.batch=-4 must be at least 1"),
    (("train.batch=2.5",), "train.batch=2.5 must be a whole number"),
    (("train.precision=fp8",), "train.precision='fp8' is none of: auto, fp32, bf16"),
    (("tokenizer.patch=3",), "tokenizer.patch=3 does not divide the image, 8 x 8"),
    (("tokenizer.d=800",), "tokenizer.d=800 exceeds 3\\*p\\*p=12; lower tokenizer.d or raise tokenizer.patch"),
    (("denoiser.heads=3",), "denoiser.width=64 must be a multiple of 4 and of denoiser.heads=3"),
    (("target=eps",), "target='eps' is built from the noise"),
    (
        ("objective.part=ldae.objectives.reconstruct.Reconstruct",),
        "objective='Reconstruct' trains no encoder; use denoise or masked",
    ),
    (
        ("objective=masked",),
        "denoiser='ViTDenoiser' cannot leave patches out; use a masked autoencoder such as mae_128x4",
    ),
    (("objective=learned_variance",), "schedule='linear_sigma' does not preserve variance .* use ddpm_linear"),
    (
        ("objective=learned_variance", "schedule=ddpm_linear", "weight=one"),
        "objective.part='DenoiseWithVariance' is built from the noise",
    ),
    (("denoiser=dit_s", "denoiser.patch=8", "input=latent"), "denoiser.patch=8 must divide the network's input, 4 x 4"),
    (("task=labelled", "task.dropout=2"), "task.dropout=2.0 must be at least 0 and at most 1"),
    (
        ("task=labelled", "data.classes=7"),
        "task.classes=7 is not the number of classes of the data; give task.classes=10",
    ),
    (("data=cifar10",), "data.root=null is not set; give data.root=FOLDER"),
    (("experiment=cold_blur/cifar10_cpu", "corruption.growth=25"), "corruption.growth=25.0 makes sigma inf pixels"),
    (
        ("experiment=cold_blend/cifar10_cpu", "data.root=NONE", "schedule=steps"),
        "schedule='steps' has no noise, so Blend would leave every image as it is; use schedule=cosine",
    ),
    (("schedule=steps",), "schedule='steps' has no noise, so Gaussian would leave every image as it is"),
    (
        ("schedule=zero_input", "target=eps", "output=latent", "loss=l2"),
        "target='eps' determines x0 at no level of ZeroInput",
    ),
    (("device=tpu",), "device='tpu' is no device"),
    (("runtime.threads=100000",), "runtime.threads=100000 must be at least 0 and at most [0-9]+"),
    (("runtime.threads=99999999999",), "runtime.threads=99999999999 must be at least 0 and at most [0-9]+"),
    (("data.workers=100000",), "data.workers=100000 must be at least 0 and at most [0-9]+"),
    (("seed=-1",), "seed=-1 must be at least 0"),
    (("allow=train.steps",), "allow='train.steps' must be a list"),
    (("tokenizer.part=os.path.X",), "tokenizer.part='os.path.X' lies outside ldae.tokenizers"),
]


@pytest.mark.case("20, 21, 22", "mistakes on the command line, each with its sentence")
@pytest.mark.parametrize(("argv", "sentence"), MISTAKES, ids=[m[0][0] for m in MISTAKES])
def test_a_mistake_is_answered_with_one_sentence(tmp_path, argv, sentence, in_process):
    code, message = in_process("pretrain", f"out={tmp_path / 'r'}", *argv)
    assert code == 2
    assert re.search(sentence, message), message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_the_process_answers_with_the_code_and_no_traceback(tmp_path):
    _, err = run("pretrain", f"out={tmp_path / 'r'}", "train.stepz=3", code=2)
    assert err.strip() == "error: train.stepz=3 is not a key of this config; did you mean train.steps?"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("tool", ["pretrain", "train_tokenizer", "probe", "checkpoint", "finetune", "export", "ablate"])
def test_every_tool_explains_itself(tool):
    out, _ = run(tool, "--help")
    assert f"ldae {tool.replace('_', '-')}" in out


def test_a_data_folder_that_is_not_there_is_65(tmp_path):
    argv = ("experiment=ldae/cifar10_cpu", f"out={tmp_path / 'r'}", f"data.root={tmp_path / 'none'}")
    _, err = run("pretrain", *argv, code=65)
    assert "none is missing; a folder is needed" in err


def test_an_output_that_cannot_be_is_73(tmp_path):
    (tmp_path / "file").write_text("")
    _, err = run("pretrain", f"out={tmp_path / 'file' / 'r'}", code=73)
    assert "cannot be written" in err


@pytest.mark.parametrize("tool", ["probe", "checkpoint"])
def test_a_folder_that_is_no_run_is_65(tmp_path, tool):
    argv = (f"run={tmp_path}",) if tool == "probe" else ("list", tmp_path)
    _, err = run(tool, *argv, code=65)
    assert "has no checkpoint" in err


def test_probe_wants_a_run():
    _, err = run("probe", "split=test", code=2)
    assert "run=null is not set; give run=RUN" in err


@pytest.mark.parametrize("tool", ["pretrain", "sample"])
def test_a_tool_without_arguments_shows_its_usage_and_does_nothing(tool, tmp_path):
    argv = [sys.executable, str(ROOT / "tools" / f"{tool}.py")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 2
    assert f"ldae {tool}" in done.stderr
    assert list(tmp_path.iterdir()) == []


WORK = {
    "pretrain": (("data=digits", "train.steps=1"), "experiment= is not given; name one, e.g. experiment=ldae/"),
    "train_tokenizer": (("data=digits",), "tokenizer= is not given; name one, e.g. tokenizer=patch_pca"),
    "ablate": (("data=digits", "budget=demo"), "grid= is not given; name one, e.g. grid=deconstruct"),
}


@pytest.mark.parametrize("tool", WORK)
def test_what_a_tool_works_on_has_to_be_named(tool, tmp_path):
    argv, sentence = WORK[tool]
    with pytest.raises(UsageError, match=sentence):
        find(tool.replace("_", "-")).load().main([*argv, f"out={tmp_path / 'r'}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0"), 2),
        (RuntimeError("x"), 70),
    ],
)
def test_memory_that_runs_out_is_no_bug_by_type(error, code, capsys):
    def fail() -> None:
        raise error

    assert guarded(fail) == wrap_error(error).code == code
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (code == 70)
    assert ("lower train.batch" in said) == (code == 2)
    assert ("ran out (2 GiB more were needed)" in said) == ("2 GiB" in str(error))


def test_a_network_that_no_memory_holds_is_one_sentence(tmp_path, capsys):
    argv = ["experiment=ldae/digits", "denoiser.width=4000000000", f"out={tmp_path / 'r'}"]
    assert guarded(lambda: find("pretrain").load().main(argv)) == 2
    assert re.match(r"error: memory ran out \(\d+ bytes more were needed\); lower train.batch", capsys.readouterr().err)
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_a_key_of_other_choices_names_them(in_process):
    code, message = in_process("sample", "run=R", "spacing.count=10", "out=S")
    assert code == 2
    assert message.endswith("is not a key of this config; it belongs to spacing=exact, linear, quadratic or trailing")

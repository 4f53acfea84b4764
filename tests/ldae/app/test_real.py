"""On real images, where LDAE_DATA names their folder."""

from __future__ import annotations

import json

import pytest
from helpers import ROOT, rows, run

PATH = sorted(p.stem for p in (ROOT / "configs" / "experiment" / "deconstruct").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("step", PATH)
def test_each_step_of_the_path_learns_to_denoise_cifar(real_data, tmp_path, step):
    argv = (f"experiment=deconstruct/{step}", "data=cifar10", f"data.root={real_data / 'cifar10'}", f"out={tmp_path}")
    run("pretrain", *argv, "train.steps=200", "monitor.num_evals=2", seconds=3600)  # as in results/cifar10.md
    first, *_, last = (row for row in rows(tmp_path) if row.get("monitor") == "panel")
    assert last["psnr_denoised/5_8"] > max(last["psnr_noised/5_8"], first["psnr_denoised/5_8"])


def test_full_size_pictures_of_all_kinds_are_streamed(real_data, tmp_path):
    argv = ("experiment=ldae/imagefolder", f"data.root={real_data / 'imagenet-samples'}", f"out={tmp_path}")
    run(
        "pretrain",
        *argv,
        "denoiser=vit_64x4",
        "train.steps=3",
        "train.batch=4",
        "data.workers=0",
        "monitor.num_evals=0",
    )
    data = json.loads((tmp_path / "data.json").read_text())
    assert sum(data["images"].values()) == 57
    assert data["unreadable"] == []

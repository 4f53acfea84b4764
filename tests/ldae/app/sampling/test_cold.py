"""Cold Diffusion from the command line: holes of any shape, initial colours of a mixture, two folders morphed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import status
from PIL import Image

from ldae.app.training import pretrain

SMALL = (
    "data=digits",
    "denoiser.channels=8",
    "denoiser.multipliers=[1,2]",
    "denoiser.attention=[]",
    "train.steps=4",
    "train.epochs=null",
    "train.batch=32",
    "monitor.num_evals=0",
    "runtime.threads=1",
    "runtime.progress=false",
)
QUIET = ("runtime.threads=1", "runtime.progress=false")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of four steps on digits, by its experiment and keys."""
    root, known = tmp_path_factory.mktemp("cold"), {}

    def run(experiment, *argv):
        key = (experiment, *argv)
        if key not in known:
            known[key] = root / str(len(known))
            pretrain.main([f"experiment={experiment}", f"out={known[key]}", *SMALL, *argv])
        return known[key]

    return run


@pytest.fixture
def masked_run(trained):
    return trained("cold_mask/cifar10_cpu", "schedule.T=10", "corruption.first=0.5")


def draw(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / f"{name}.png"


def test_known_pixels_are_kept_and_the_white_ones_of_the_mask_filled(in_process, masked_run, tmp_path):
    picture = draw(tmp_path / "mine", "a", np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    hole = np.zeros((8, 8), dtype=np.uint8)
    hole[2:5, 1:6] = 255
    mask = draw(tmp_path / "masks", "m", hole)
    argv = (f"run={masked_run}", f"pictures={picture}", f"mask={mask}", f"out={tmp_path / 'out'}", *QUIET)
    assert in_process("restore", *argv) == (0, "")
    page = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    tiles = [page[15::8, 66 * k : 66 * k + 64 : 8].astype(int) for k in range(4)]  # a pixel is 8 x 8 large
    original, masked, direct, sampled = tiles
    known = hole == 0
    for restored in (masked, direct, sampled):
        assert np.array_equal(restored[known], original[known])
    assert np.unique(masked[~known]).tolist() == [128]
    assert not np.array_equal(sampled[~known], original[~known])
    figures = json.loads((tmp_path / "out" / "restored.json").read_text())["figures"]
    assert set(figures) == {"masked", "direct", "sampled"}


@pytest.mark.parametrize("shape", ["strokes", "boxes"])
def test_random_holes_do_not_depend_on_the_batch(in_process, masked_run, tmp_path, shape):
    scores = []
    for batch in (2, 4):
        out = tmp_path / str(batch)
        argv = (f"run={masked_run}", f"mask={shape}", "count=4", f"batch={batch}", f"out={out}", "precision=fp32")
        assert in_process("restore", *argv, *QUIET, "gif=false") == (0, "")
        scores.append(json.loads((out / "restored.json").read_text())["figures"]["sampled"]["rmse"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_masks_that_cannot_be_used_are_refused(in_process, masked_run, trained, tmp_path):
    black = draw(tmp_path, "black", np.zeros((8, 8), dtype=np.uint8))
    out = f"out={tmp_path / 'x'}"
    code, message = in_process("restore", f"run={masked_run}", f"mask={black}", out, *QUIET)
    assert (code, "no white pixels" in message) == (65, True)
    code, message = in_process("restore", f"run={masked_run}", "mask=nowhere.png", out, *QUIET)
    assert (code, "mask=nowhere.png is no picture" in message) == (65, True)
    code, message = in_process("restore", f"run={masked_run}", "how=inpaint", out, *QUIET)
    assert (code, "mask=null is not set" in message) == (2, True)
    code, message = in_process("restore", f"run={masked_run}", "how=edit", "mask=boxes", out, *QUIET)
    assert (code, "is for how=inpaint" in message) == (2, True)
    colour = trained("cold_color/cifar10_cpu", "schedule.T=5")
    code, message = in_process("restore", f"run={colour}", "mask=boxes", out, *QUIET)
    assert (code, "was not trained on masks" in message) == (2, True)


def test_colours_of_a_mixture_start_a_cold_generation(in_process, trained, tmp_path, capsys):
    run = trained("cold_blur/cifar10_generation_cpu", "schedule.T=5", "corruption.kernel=5")
    argv = (f"run={run}", "count=4", "init=coarse_mixture", *QUIET)
    assert in_process("sample", *argv, f"out={tmp_path / 'a'}") == (0, "")
    assert "x_T: a mixture of" in capsys.readouterr().out
    assert in_process("sample", *argv, "init.components=2", f"out={tmp_path / 'b'}") == (0, "")
    a, b = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in "ab")
    assert a.shape == (4, 8, 8, 3)
    assert not np.array_equal(a, b)
    code, message = in_process("sample", *argv, "init.components=0", f"out={tmp_path / 'c'}")
    assert (code, "components=0" in message) == (2, True)


def test_two_folders_become_an_animation(in_process, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("source", "target"):
        for i in range(12):
            draw(tmp_path / name, str(i), torch.randint(256, (8, 8, 3), generator=generator).byte().numpy())
    argv = (f"source={tmp_path / 'source'}", f"target={tmp_path / 'target'}", f"out={tmp_path / 'out'}")
    small = (*SMALL[1:], "data.size=8", "schedule.T=4", "count=3", "train.batch=4")
    assert in_process("morph", *argv, *small) == (0, "")
    assert Image.open(tmp_path / "out" / "morph" / "trajectory.gif").n_frames == 4
    strip = Image.open(tmp_path / "out" / "morph" / "trajectory.png")
    assert strip.width == 4 * (64 + 2) - 2  # x_t after each step, with its head
    assert strip.height > 3 * (64 + 2) - 2
    assert np.load(tmp_path / "out" / "morph" / "samples.npz")["arr_0"].shape == (3, 8, 8, 3)
    assert status(tmp_path / "out" / "run")["state"] == "done"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("source=a", "target=b"), 2, "out= is not given"),
        (("source=nowhere", "target=nowhere", "out=x"), 65, "source=nowhere is no folder"),
        (("source=a", "target=b", "out=x", "corruption=blur"), 2, "corruption= is fixed in ldae morph"),
        (("a", "b"), 2, "usage: ldae morph"),
    ],
)
def test_what_morph_cannot_use_is_one_sentence(in_process, argv, code, message):
    exit_code, error = in_process("morph", *argv)
    assert exit_code == code
    assert message in error

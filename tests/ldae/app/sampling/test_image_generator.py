"""`ldae.load_generator`: the pictures of the commands, in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image

import ldae
from ldae.app.sampling.image_arrays import as_output, images_of, masks_of
from ldae.app.training import pretrain
from ldae.core.errors import CheckpointError, ConfigError, DataError, UsageError

SMALL = (
    "data=digits",
    "denoiser.channels=8",
    "denoiser.multipliers=[1,2]",
    "denoiser.attention=[]",
    "train.steps=4",
    "train.batch=16",
    "monitor.num_evals=0",
    "runtime.threads=1",
    "runtime.progress=false",
)
QUICK = {"sampler": "ddim", "steps": 5}
QUICK_WORDS = ("sampler=ddim", "spacing=trailing", "spacing.count=5")
QUIET = ("runtime.threads=1", "runtime.progress=false", "gif=false")
GAP = 2  # pixels between the tiles of a picture


def trained(out, experiment, *argv):
    pretrain.main([f"experiment={experiment}", *SMALL, *argv, f"out={out}"])
    return out


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "ddpm", "ddpm/cifar10_cpu")


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "cold", "cold_sr/cifar10_cpu")


@pytest.fixture(scope="module")
def sr3(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "sr3", "sr3/cifar10_cpu", "task.factor=2")


@pytest.fixture
def photographs(tmp_path):
    """A folder of three pictures of the size of the runs."""
    folder, generator = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    for name in "abc":
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def tiles(path, count, size=8, least=64):
    """The columns of a row that `ldae restore` wrote, each (size, size, 3) uint8."""
    side = max(1, least // size) * size
    picture = np.asarray(Image.open(path))[-side:]  # below the heads of the columns
    return [picture[:side, k * (side + GAP) :][:, :side][:: side // size, :: side // size] for k in range(count)]


def arrays(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_samples_are_those_of_the_command(ddpm, tmp_path):
    run("sample", f"run={ddpm}", f"out={tmp_path / 'o'}", *QUICK_WORDS, *QUIET, "count=6", "batch=4", "seed=3")
    with np.load(tmp_path / "o" / "samples.npz") as file:
        expected = file["arr_0"]
    made = ldae.load_generator(ddpm).sample(6, **QUICK, seed=3, batch=4)
    assert (made.dtype, made.shape) == (np.uint8, (6, 8, 8, 3))
    assert np.array_equal(made, expected)
    assert not np.array_equal(ldae.load_generator(ddpm).sample(6, **QUICK, seed=4, batch=4), expected)


def test_restored_pictures_are_those_of_the_command(cold, photographs, tmp_path):
    out = tmp_path / "o"
    run("restore", f"run={cold}", f"pictures={photographs}", f"out={out}", *QUIET)
    generator = ldae.load_generator(cold)
    columns = generator.columns(photographs)
    assert list(columns) == ["input", "degraded", "direct", "sampled"]
    for i, name in enumerate("abc"):
        for column, expected in zip(columns.values(), tiles(out / f"{name}.png", 4), strict=True):
            assert np.array_equal(column[i], expected)
    assert np.array_equal(generator.restore(photographs), columns["sampled"])


def test_edits_are_those_of_the_command(ddpm, photographs, tmp_path):
    out, keep = tmp_path / "o", np.zeros((8, 8), np.uint8)
    keep[:, :3] = 255
    Image.fromarray(keep).save(tmp_path / "keep.png")
    argv = ("how=edit", "t0=[0.4]", f"keep={tmp_path / 'keep.png'}", "repeats=2", "seed=5")
    run("restore", f"run={ddpm}", f"pictures={photographs}", f"out={out}", *argv, *QUICK_WORDS, *QUIET)
    originals = arrays(photographs)
    edited = ldae.load_generator(ddpm).edit(originals, t0=0.4, keep=keep > 0, repeats=2, seed=5, **QUICK)
    for i, name in enumerate("abc"):
        assert np.array_equal(edited[i], tiles(out / f"{name}.png", 3)[-1])
    assert np.array_equal(edited[:, :, :3], originals[:, :, :3])
    assert not np.array_equal(edited[:, :, 3:], originals[:, :, 3:])


def test_small_images_are_enlarged_as_by_a_cascade(sr3, tmp_path):
    low = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "low.npz", arr_0=low)
    run("sample", f"run={sr3}", f"low={tmp_path / 'low.npz'}", f"out={tmp_path / 'o'}", *QUICK_WORDS, *QUIET)
    with np.load(tmp_path / "o" / "samples.npz") as file:
        expected = file["arr_0"]
    generator = ldae.load_generator(sr3)
    assert np.array_equal(generator.sample(low=low, **QUICK), expected)
    with pytest.raises(DataError, match=r"low has images of \(8, 8\) pixels; this run enlarges 4 x 4"):
        generator.sample(low=np.zeros((1, 8, 8, 3), np.uint8))


def test_every_form_of_an_image_gives_the_same_picture(ddpm, photographs):
    generator, expected = ldae.load_generator(ddpm), None
    originals = arrays(photographs)
    tensor = torch.from_numpy(originals).movedim(-1, 1)
    forms = [
        photographs,
        originals,
        tensor,
        tensor.float() / 255,
        [Image.fromarray(x) for x in originals],
        [*originals],
    ]
    for images in forms:
        edited = generator.edit(images, t0=0.3, **QUICK)
        expected = edited if expected is None else expected
        assert np.array_equal(edited, expected)
    pictures = generator.edit(originals[0], t0=0.3, output="pil", **QUICK)
    floats = generator.edit(originals, t0=0.3, output="tensor", **QUICK)
    assert np.array_equal(np.asarray(pictures[0]), expected[0])
    assert np.array_equal((floats * 255).round().byte().movedim(1, -1).numpy(), expected)


def test_t0_of_zero_returns_the_guide(ddpm, photographs):
    guide = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    edited = ldae.load_generator(ddpm).edit(photographs, t0=0, guide=guide, **QUICK)
    assert np.array_equal(edited, np.broadcast_to(guide, edited.shape))


def test_the_global_random_state_stays(cold):
    generator = ldae.load_generator(cold)
    before = torch.random.get_rng_state()
    generator.sample(2, init="coarse_gaussian", **{"init.side": 4})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: g.sample(2, guidence=2), ConfigError, r"guidence=2 is not a key.*did you mean guidance"),
        (lambda g: g.sample(2, sampler="dpm"), UsageError, r"sampler=dpm does not exist; there are: .*ddim"),
        (lambda g: g.sample(0), ConfigError, r"count=0"),
        (lambda g: g.sample(2, steps=2000), ConfigError, r"spacing.count=2000 must be 1 to 1000"),
        (lambda g: g.sample(2, out="x"), ConfigError, r"out='x' is no keyword here"),
        (lambda g: g.edit(np.zeros((8, 8, 3), np.uint8), how="undo"), ConfigError, r"how='undo' is no keyword here"),
        (lambda g: g.columns(np.zeros((8, 8, 3), np.uint8), count=3), ConfigError, r"count=3 is no keyword here"),
        (lambda g: g.sample(2, classes=[1]), ConfigError, r"this network has no class labels"),
        (lambda g: g.edit(np.zeros((8, 8, 3))), DataError, r"images is an array \(8, 8, 3\) of float64; give uint8"),
        (lambda g: g.edit(torch.full((1, 3, 8, 8), 1.5)), DataError, r"values from 1.5 to 1.5"),
        (lambda g: g.edit([]), DataError, r"images holds no image"),
        (lambda g: g.edit("nowhere.png"), DataError, r"nowhere.png is no picture"),
        (lambda g: g.edit(np.zeros((8, 8, 3), np.uint8), t0=1.5), ConfigError, r"t0=1.5"),
        (lambda g: g.restore(np.zeros((8, 8, 3), np.uint8), how="interpolate"), ConfigError, r"use columns\(\)"),
        (
            lambda g: g.restore(np.zeros((8, 8, 3), np.uint8), output="jpeg"),
            ConfigError,
            r"none of: numpy, pil, tensor",
        ),
        (
            lambda g: g.edit(np.zeros((3, 8, 8, 3), np.uint8), guide=np.zeros((2, 8, 8, 3), np.uint8)),
            DataError,
            r"guide has 2 pictures for 3 images; give 1 or 3",
        ),
    ],
)
def test_a_mistake_is_named_in_one_sentence(ddpm, call, error, message):
    with pytest.raises(error, match=message):
        call(ldae.load_generator(ddpm))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        ldae.load_generator(tmp_path / "none")
    with pytest.raises(CheckpointError):
        ldae.load_generator(tmp_path)


def test_pictures_of_any_mode_and_size_are_cropped_at_the_centre():
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((255, 0, 0), (10, 0, 20, 10))
    for picture in (wide, wide.convert("P"), wide.convert("RGBA")):
        assert np.array_equal(as_output(images_of("images", picture, 10), "numpy")[0], np.asarray(wide)[:, 10:20])
    with pytest.raises(DataError, match="several sizes"):
        images_of("low", [wide, Image.new("RGB", (8, 8))], None)


def test_masks_of_every_form_are_the_same():
    mask = np.random.default_rng(0).random((2, 8, 8)) > 0.5
    forms = [mask, mask.astype(np.uint8) * 255, torch.from_numpy(mask), torch.from_numpy(mask)[:, None].float()]
    forms.append([Image.fromarray(one.astype(np.uint8) * 255) for one in mask])
    for form in forms:
        assert np.array_equal(masks_of("keep", form, 8)[:, 0].numpy(), mask.astype(np.float32))

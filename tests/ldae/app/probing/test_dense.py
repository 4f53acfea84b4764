"""ldae dense on pictures of bright squares, read by an encoder of digits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import SHORT, run
from PIL import Image

from ldae.export.encoder import load_run

QUICK = ("data=segmentation", "runtime.threads=1", "layers=[1]", "penalties=[1e-2,1e-4]")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "run"
    run("pretrain", f"out={out}", *SHORT)
    return out


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Bright squares on dark ground, with their masks."""
    root, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((8, 8), np.uint8)
            y, x = 2 * generator.integers(0, 3, 2)
            mask[y : y + 4, x : x + 4] = 255
            noise = generator.integers(0, 60, (8, 8, 3))
            picture = (noise + 150 * (mask[..., None] > 0)).astype(np.uint8)
            Image.fromarray(picture).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


def test_bright_squares_are_segmented_from_pixels_and_not_by_a_mean(pretrained, squares, in_process, tmp_path, capsys):
    argv = (f"run={pretrained}", f"data.root={squares}", f"out={tmp_path}", *QUICK)
    assert in_process("dense", *argv) == (0, "")
    rows = {r["encoder"]: r for r in map(json.loads, (tmp_path / "dense.jsonl").read_text().splitlines())}
    assert rows["pixels of a patch"]["iou"] > 80
    assert rows["mean mask"]["iou"] < 50
    assert all(row["images"] == 12 and row["split"] == "test" for row in rows.values())
    assert "| pixels of a patch " in capsys.readouterr().out


def test_the_test_split_is_read_once_or_not_at_all(pretrained, squares, in_process, tmp_path, monkeypatch):
    from ldae.app.probing import dense as dense

    read, batches = [], dense.MaskedImages.batches
    monkeypatch.setattr(dense.MaskedImages, "batches", lambda self, split: read.append(split) or batches(self, split))
    argv = (f"run={pretrained}", f"data.root={squares}", f"out={tmp_path}", *QUICK, "layers=[1,2]")
    assert in_process("dense", *argv, "split=holdout") == (0, "")
    assert "test" not in read
    read.clear()
    assert in_process("dense", *argv) == (0, "")
    assert read.count("test") == 4  # masks, and tokens of two networks and of pixels, each at the selected layer and t


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [(("layers=[99]",), "is not one of"), (("t=[5000]",), "t"), (("penalties=[]",), "must have at least one entry")],
)
def test_what_cannot_be_read_is_refused(pretrained, squares, in_process, tmp_path, argv, sentence):
    code, message = in_process(
        "dense", f"run={pretrained}", f"data.root={squares}", f"out={tmp_path / 'o'}", *QUICK, *argv
    )
    assert code == 2
    assert sentence in message
    assert not (tmp_path / "o").exists()


def test_images_without_masks_are_refused(pretrained, in_process, tmp_path):
    argv = (f"run={pretrained}", f"out={tmp_path}", "data=digits", "layers=[1]")
    code, message = in_process("dense", *argv)
    assert code == 2
    assert "has no masks" in message


def test_a_missing_run_is_one_sentence(in_process):
    assert in_process("dense")[0] == 2


@pytest.mark.parametrize("value", [0, 255])
def test_masks_that_are_the_same_everywhere_have_nothing_to_score(pretrained, squares, in_process, tmp_path, value):
    shutil.copytree(squares, tmp_path / "s")
    for file in (tmp_path / "s" / "test" / "masks").iterdir():
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(file)
    code, message = in_process(
        "dense", f"run={pretrained}", f"data.root={tmp_path / 's'}", f"out={tmp_path / 'o'}", *QUICK
    )
    assert code == 65
    assert "nothing to score" in message or "has foreground" in message


def test_few_images_are_warned_of(pretrained, squares, in_process, tmp_path, capsys):
    argv = (f"run={pretrained}", f"data.root={squares}", f"out={tmp_path}", *QUICK, "precision=fp32")
    assert in_process("dense", *argv) == (0, "")
    assert "Warning: test has 12 images: one is 8.3 % of the mean." in capsys.readouterr().out
    row = json.loads((tmp_path / "dense.jsonl").read_text().splitlines()[0])
    assert any("holdout has 4 images" in sentence for sentence in row["warnings"])


def test_the_untrained_network_of_a_loaded_run_equals_that_of_its_folder(pretrained):
    trained, expected = load_run(pretrained), load_run(pretrained, weights="untrained")
    untrained = trained.untrained().objective.state_dict()
    assert untrained.keys() == expected.objective.state_dict().keys()
    assert all(torch.equal(untrained[name], value) for name, value in expected.objective.state_dict().items())
    assert any(not torch.equal(untrained[name], value) for name, value in trained.objective.state_dict().items())


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Dark, green and red patches: masks of three classes, and a pixel of none."""
    root, generator = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            classes = generator.integers(0, 3, (4, 4)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
            noise = generator.integers(0, 60, (8, 8, 3))
            picture = (noise + 150 * (classes[..., None] == (1, 2, 3))).astype(np.uint8)
            Image.fromarray(picture).save(root / split / "images" / f"{i}.png")
            classes[0, 0] = 255
            Image.fromarray(classes).save(root / split / "masks" / f"{i}.png")
    return root


def test_several_classes_are_scored_by_their_mean_iou(pretrained, coloured, in_process, tmp_path, capsys):
    argv = (f"run={pretrained}", f"data.root={coloured}", "data.classes=3", f"out={tmp_path}", *QUICK)
    assert in_process("dense", *argv) == (0, "")
    rows = {r["encoder"]: r for r in map(json.loads, (tmp_path / "dense.jsonl").read_text().splitlines())}
    assert rows["pixels of a patch"]["iou"] > 70  # logits are interpolated between patches
    assert rows["pixels of a patch"]["pixels"] > 80
    assert rows["mean mask"]["iou"] < 40
    assert "| mIoU | pixel accuracy |" in capsys.readouterr().out.replace("  ", " ").replace("  ", " ")


def test_masks_of_a_single_class_allow_no_score(pretrained, coloured, in_process, tmp_path):
    root = shutil.copytree(coloured, tmp_path / "one")
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    code, message = in_process("dense", f"run={pretrained}", f"data.root={root}", "data.classes=3", *QUICK)
    assert (code, "have fewer than two classes: there is nothing to score" in message) == (65, True), message

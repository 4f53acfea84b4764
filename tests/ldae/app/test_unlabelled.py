"""Images without classes: pretrained on; tools that need classes say in one sentence how they are given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ldae.app.sampling.images import files_of

DIGITS_LIKE = (
    "experiment=ldae/digits",
    "data=imagefolder",
    "data.size=8",
    "data.patch=2",
    "data.d=4",
    "data.workers=0",
)
SHORT = ("train.steps=2", "train.batch=16", "train.precision=fp32", "runtime.threads=1", "runtime.progress=false")


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """80 pictures of noise in one folder."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(80):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(root / f"{i:02d}.png")
    return root


def test_a_flat_folder_is_pretrained_and_a_probe_says_what_is_missing(flat, tmp_path, in_process, capsys):
    run = tmp_path / "run"
    argv = (*DIGITS_LIKE, *SHORT, f"data.root={flat}", f"out={run}", "monitor.num_evals=1")
    assert in_process("pretrain", *argv) == (0, "")
    note = f"warning: the 80 images of {flat} have no classes; pretraining needs none, scores do: "
    assert capsys.readouterr().err.count(note) == 1
    for tool, purpose in (("probe", "probing"), ("finetune", "fine-tuning")):
        assert in_process(tool, f"run={run}", f"out={tmp_path / tool}") == (
            65,
            f"data.root={flat}: the images have no classes, and {purpose} needs them; "
            "give each class a folder of its own, CLASS/NAME",
        )
        assert not (tmp_path / tool / "results.jsonl").exists()


def test_what_needs_classes_refuses_images_without(flat, tmp_path, in_process):
    argv = (*DIGITS_LIKE, *SHORT, f"data.root={flat}", f"out={tmp_path / 'run'}", "task=labelled")
    assert in_process("pretrain", *argv) == (
        2,
        "task.classes=1000 is for images with classes, and these have none; "
        "give each class a folder of its own, CLASS/NAME, or task=images",
    )
    argv = ("tokenizer=vqgan", "data=imagefolder", "data.size=32", f"data.root={flat}", f"out={tmp_path / 'vqgan'}")
    code, message = in_process("train_tokenizer", *argv, "data.workers=0", "runtime.progress=false")
    assert (code, message.startswith("the images have no classes, which the classifier of")) == (65, True)


def test_one_class_is_a_warning(flat, tmp_path, in_process, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "all").symlink_to(flat)
    argv = (
        *DIGITS_LIKE,
        *SHORT,
        f"data.root={tmp_path / 'pictures'}",
        f"out={tmp_path / 'run'}",
        "monitor.num_evals=0",
    )
    assert in_process("pretrain", *argv) == (0, "")
    note = "the images have one class (all): there is nothing to score"
    assert f"warning: {note}\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "data.json").read_text())["notes"] == [note]


def test_what_else_is_in_a_folder_of_pictures_is_named(flat, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for name in ("0.png", "notes.txt", ".DS_Store"):
        (tmp_path / "pictures" / name).write_bytes((flat / "00.png").read_bytes())
    (tmp_path / "pictures" / "more.png").mkdir()
    assert [path.name for path in files_of("pictures", str(tmp_path / "pictures"))] == ["0.png"]
    assert "2 other files are not read: more.png, notes.txt\n" in capsys.readouterr().err

"""Damaged pictures are left out, counted and named, or the run stops (results/faults.json, cases 16 to 18, 26)."""

from __future__ import annotations

import json

import pytest
from helpers import run, status

FEW = ("train.steps=2", "train.batch=16", "monitor.num_evals=0", "runtime.threads=1")


def cut(paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unreadable(folder):
    return {name for name, _ in json.loads((folder / "data.json").read_text())["unreadable"]}


@pytest.mark.case("16", "a tenth of the pictures cut short, max_bad=0.2")
def test_truncated_pictures_are_left_out_counted_and_named(tree, folder, tmp_path):
    bad = sorted((folder / "train").rglob("*.jpg"))[::10]
    cut(bad)
    _, err = run("pretrain", *tree, *FEW, "data.max_bad=0.2", f"out={tmp_path / 'r'}")
    assert unreadable(tmp_path / "r") == {str(path.relative_to(folder / "train")) for path in bad}
    assert f"{len(bad)} unreadable images left out, the first: " in err
    assert status(tmp_path / "r")["state"] == "done"


@pytest.mark.slow
@pytest.mark.case("17", "a tenth of the pictures cut short, max_bad=0.05")
def test_too_many_truncated_pictures_are_65(tree, folder, tmp_path):
    cut(sorted((folder / "train").rglob("*.jpg"))[::10])
    _, err = run("pretrain", *tree, *FEW, "data.max_bad=0.05", f"out={tmp_path / 'r'}", code=65)
    assert "20 of 200 images" in err
    assert "data.max_bad=0.05" in err
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.case("18", "no bytes, text and HTML with the names of pictures")
def test_what_is_no_picture_is_counted(tree, folder, tmp_path):
    contents = {"empty.jpg": b"", "text.jpg": b"not a picture", "page.png": b"<!doctype html><title>403</title>"}
    for name, content in contents.items():
        (folder / "train" / "a" / name).write_bytes(content)
    run("pretrain", *tree, *FEW, "data.max_bad=0.1", f"out={tmp_path / 'r'}")
    assert unreadable(tmp_path / "r") == {f"a/{name}" for name in contents}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "missing", "file"])
@pytest.mark.case("26", "data.root is empty, missing, a file")
def test_a_root_without_pictures_is_65(tmp_path, kind):
    root = tmp_path / "root"
    if kind == "empty":
        root.mkdir()
    elif kind == "file":
        root.write_text("")
    _, err = run("pretrain", "data=imagefolder", f"data.root={root}", *FEW, f"out={tmp_path / 'r'}", code=65)
    assert err.startswith("error: data.root=")
    assert not (tmp_path / "r" / "metrics.jsonl").exists()

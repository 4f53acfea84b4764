"""Fixtures of the tests of faults: an uninterrupted run, and helpers that disturb another."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SHORT, run
from PIL import Image


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """One uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    run("pretrain", f"out={folder}", *SHORT)
    return folder


def pictures(folder, count, kind="jpg", size=24):
    """Writes pictures of noise in two classes below a folder, half of them in each; their paths."""
    generator, paths = np.random.default_rng(0), []
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:04d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (size, size + i % 5, 3), np.uint8)
        Image.fromarray(pixels).resize((size, size + i % 7)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def folder(tmp_path):
    """200 JPEGs in two classes below tmp_path/images/train, 20 below test."""
    pictures(tmp_path / "images" / "train", 200)
    pictures(tmp_path / "images" / "test", 20)
    return tmp_path / "images"


@pytest.fixture
def tree(folder):
    """Arguments of `ldae pretrain` that stream those pictures through two worker processes."""
    return (
        "data=imagefolder",
        f"data.root={folder}",
        "data.size=16",
        "data.patch=4",
        "data.d=8",
        "data.store=stream",
        "data.workers=2",
        "augment=random_resized_crop",
    )

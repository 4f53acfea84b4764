"""MedMNIST by its package: its files, its division, its errors."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from ldae.core.errors import ConfigError, DataError
from ldae.data.base import Division
from ldae.data.cache import Context
from ldae.data.medmnist import MedMNIST

pytest.importorskip("medmnist")


@pytest.fixture
def folder(tmp_path):
    """A folder with a set of each kind as MedMNIST stores them."""
    rng = np.random.default_rng(0)
    for name, shape, classes in (("bloodmnist", (28, 28, 3), 8), ("breastmnist", (28, 28), 2)):
        arrays = {}
        for split, count in (("train", 40), ("val", 24), ("test", 16)):
            arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return tmp_path


def opened(folder, subset, size=28):
    return MedMNIST(size, Division(), subset, str(folder)).open(Context(cache=folder / "cache"))


@pytest.mark.parametrize(("subset", "classes"), [("bloodmnist", 8), ("breastmnist", 2)])
def test_pixels_labels_and_division_are_those_of_the_file(folder, subset, classes):
    splits, file = opened(folder, subset), np.load(folder / f"{subset}.npz")
    assert len(splits.classes) == classes
    for images, split in ((splits.train, "train"), (splits.holdout, "val"), (splits.test, "test")):
        stored = torch.from_numpy(file[f"{split}_images"])
        assert torch.equal(images.pixels[:, 0], stored[..., 0] if stored.ndim == 4 else stored)
        assert torch.equal(images.pixels[:, 2], stored[..., 2] if stored.ndim == 4 else stored)
        assert np.array_equal(images.labels, file[f"{split}_labels"][:, 0])


def test_an_absent_file_and_an_unknown_set_are_named(folder):
    with pytest.raises(DataError, match=r"holds no bloodmnist of 64 pixels .*data.download=true"):
        opened(folder, "bloodmnist", size=64)
    with pytest.raises(ConfigError, match=r"subset='bloodmnst' is no set .* did you mean 'bloodmnist'"):
        opened(folder, "bloodmnst")
    with pytest.raises(ConfigError, match=r"'chestmnist' is no set of flat images with one label"):
        opened(folder, "chestmnist")


def test_without_the_package_a_sentence_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package medmnist; pip install 'ldae\[medmnist\]'"):
        opened(folder, "bloodmnist")

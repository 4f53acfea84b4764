"""Crops of the embedded photographs: their places, and disjoint splits."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ldae.core.errors import ConfigError, DataError
from ldae.data import photos
from ldae.data.cache import Context
from ldae.data.datasets import Division
from ldae.data.photos import PHOTOGRAPHS, Photos, load_photograph, split_regions


@pytest.fixture
def opened(tmp_path):
    """(size, split_seed, crops, ...) -> the splits."""

    def open_(size=32, seed=0, holdout=0.2, **counts):
        return Photos(size, Division(holdout=holdout, split_seed=seed), **counts).open(Context(tmp_path))

    return open_


def corners(images):
    """(photograph, x, y) of every crop of a set, from its name."""
    names = [images.name(i) for i in images.ids]
    matches = [re.fullmatch(r"(\w+)/\w+-\d+-x(\d+)-y(\d+)", name) for name in names]
    return [(m[1], int(m[2]), int(m[3])) for m in matches]


def pixels(images):
    return images.pixels[images.ids].numpy()


def test_sizes_and_equal_classes(opened):
    splits = opened()
    assert [len(s) for s in (splits.train, splits.holdout, splits.test)] == [4800, 1200, 1440]
    for images, count in ((splits.train, 400), (splits.holdout, 100), (splits.test, 120)):
        assert np.bincount(images.labels[images.ids]).tolist() == [count] * len(PHOTOGRAPHS)
        assert [list(PHOTOGRAPHS)[label] for label in images.labels[images.ids]] == [c[0] for c in corners(images)]
    assert splits.train.pixels.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("size", [8, 32, 50])
def test_no_pixel_of_a_split_is_within_a_crops_width_of_anothers(opened, size):
    splits = opened(size, crops=1200, test_crops=600)
    sets = [corners(images) for images in (splits.train, splits.holdout, splits.test)]
    for name in PHOTOGRAPHS:
        places = [np.array([(x, y) for photo, x, y in crops if photo == name]) for crops in sets]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            apart = np.abs(places[a][:, None] - places[b][None]).max(-1)  # of corners; pixels are size - 1 nearer
            assert apart.min() - (size - 1) > size, name


def test_regions_lie_inside_and_hold_a_crop():
    for name in PHOTOGRAPHS:
        height, width = load_photograph(name).shape
        for boxes in split_regions(height, width, 50).values():
            for box in boxes:
                assert 0 <= box.top <= box.bottom - 50 <= height - 50
                assert 0 <= box.left <= box.right - 50 <= width - 50


def test_crops_are_the_photographs_own_pixels_up_to_mean_and_contrast(opened):
    test = opened().test
    for i in range(0, len(test), 97):
        name, x, y = corners(test)[i]
        source = load_photograph(name)[y : y + 32, x : x + 32].astype(float)
        crop = pixels(test)[i].astype(float)
        assert np.array_equal(crop[0], crop[1])
        assert np.array_equal(crop[0], crop[2])
        inside = (crop[0] > 0) & (crop[0] < 255)
        slope, offset = np.polyfit(source[inside], crop[0][inside], 1) if source.std() > 1 else (1, None)
        assert 1 / 1.6 < slope < 1.6
        if offset is not None:
            assert np.abs(slope * source + offset - crop[0])[inside].max() < 1


def test_the_mean_of_a_crop_says_nothing_about_its_photograph(opened):
    train = opened().train
    means = pixels(train).mean((1, 2, 3))
    by_class = [means[train.labels[train.ids] == c].mean() for c in range(len(PHOTOGRAPHS))]
    assert np.ptp(by_class) < 8  # standard error of each: 0.9


def test_crops_depend_on_the_seed_of_the_division_alone(opened):
    counts = {"crops": 120, "test_crops": 24}
    first, again, other = opened(**counts), opened(**counts), opened(seed=1, **counts)
    assert np.array_equal(pixels(first.train), pixels(again.train))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not np.array_equal(pixels(first.train), pixels(other.train))
    more = opened(crops=240, test_crops=24)
    assert np.array_equal(pixels(first.test), pixels(more.test))


def test_what_cannot_be_cut_is_refused(opened, monkeypatch):
    with pytest.raises(ConfigError, match="at most 50"):
        opened(51)
    with pytest.raises(DataError, match=r"data\.crops=6 .* at least 12"):
        opened(crops=6)
    assert len(opened(holdout=0, crops=12, test_crops=12).holdout) == 0
    monkeypatch.setitem(photos.PHOTOGRAPHS, "china", ("sklearn", "datasets/images", "none.jpg"))
    with pytest.raises(DataError, match=r"none\.jpg cannot be read .* reinstall scikit-learn"):
        opened()

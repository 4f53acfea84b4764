"""The picture of a table: lighter is better, the best is framed, nothing is cut off."""

from __future__ import annotations

import itertools

import numpy as np

from linear_probe.heatmap import CELL_HEIGHT, EMPTY, colour, heatmap


def lightness(rgb):
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def test_lightness_rises_with_the_share():
    steps = [lightness(colour(share)) for share in np.linspace(0, 1, 101)]
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert colour(-1) == colour(0)
    assert colour(2) == colour(1) == (0xFF, 0xEA, 0x46)


def colours(picture):
    return {tuple(rgb) for rgb in np.asarray(picture).reshape(-1, 3).tolist()}


def test_every_value_has_its_colour_and_a_missing_one_none():
    picture = heatmap([[10.0, 20.0], [None, 15.0]], ["1", "2"], ["t=0", "t=10"], "title", "layer", "t")
    found = colours(picture)
    assert {colour(0.0), colour(0.5), colour(1.0), EMPTY} <= found
    assert EMPTY not in colours(heatmap([[1.0]], ["1"], ["t=0"], "", "layer", "t"))


def test_long_names_widen_the_picture():
    short = heatmap([[1.0]], ["1"], ["a"], "t", "layer", "t")
    for longer in (
        heatmap([[1.0]], ["1"], ["a" * 60], "t", "layer", "t"),
        heatmap([[1.0]], ["1" * 60], ["a"], "t", "layer", "t"),
        heatmap([[1.0]], ["1"], ["a"], "t" * 80, "layer", "t"),
    ):
        assert longer.width > short.width + 200
        pixels = np.asarray(longer)
        assert (pixels[:, -8:] == 255).all()  # ink ends before the margin
    assert heatmap([[1.0]] * 3, list("123"), ["a"], "t", "layer", "t").height == short.height + 2 * CELL_HEIGHT

"""Heads of pictures: they leave the tiles as they are, and stand over their own column."""

from __future__ import annotations

import torch

from ldae.objectives.panels import add_heads, filter_tiles, tile
from ldae.tokenizers.pixel import Identity


def test_heads_stand_beside_the_tiles_and_change_none():
    picture = tile(torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    page = add_heads(picture, ["first", "", ""], ["row", ""])
    top, left = page.shape[1] - picture.shape[1], page.shape[2] - picture.shape[2]
    assert torch.equal(page[:, top:, left:], picture)
    ink = page.amin(0) < 0.5
    assert ink[:top, left : left + 64].any()
    assert not ink[:top, left + 64 :].any()
    assert ink[top : top + 64, :left].any()
    assert not ink[top + 66 :, :left].any()


def test_a_long_head_is_broken_between_words():
    picture = tile(torch.zeros(1, 2, 3, 8, 8))
    one, two = (add_heads(picture, [head, ""]).shape[1] for head in ("mean", "mean of several runs"))
    assert two > one


def test_filters_of_masks_of_several_classes_are_grey():
    picture = filter_tiles(Identity((5, 8, 8)))
    assert picture.shape[0] == 3
    assert torch.equal(picture[0], picture[2])

"""Poolings against their definitions, written out."""

from __future__ import annotations

import pytest
import torch

from linear_probe.pooling import POOLINGS

PREFIX = 2  # a class token and a register
TOKENS = {layer: torch.randn(3, PREFIX + 4, 5, generator=torch.Generator().manual_seed(layer)) for layer in range(1, 7)}


def of(name, layer):
    return POOLINGS[name]({i: TOKENS[i] for i in POOLINGS[name].layers(layer)}, layer, PREFIX)


def test_one_layer():
    mean = sum(TOKENS[5][:, PREFIX + i] for i in range(4)) / 4
    torch.testing.assert_close(of("mean", 5), mean)
    assert torch.equal(of("cls", 5), TOKENS[5][:, 0])
    torch.testing.assert_close(of("cls+mean", 5), torch.cat([TOKENS[5][:, 0], mean], 1))


def test_four_layers_the_way_dinov2_puts_them_together():
    classes = torch.stack([TOKENS[i][:, 0] for i in (3, 4, 5, 6)], dim=1).flatten(1)
    assert torch.equal(of("cls4", 6), classes)
    assert torch.equal(of("cls4+mean", 6)[:, :20], classes)
    assert torch.equal(of("cls4+mean", 6)[:, 20:], of("mean", 6))
    assert torch.equal(of("mean4", 6), torch.cat([of("mean", i) for i in (3, 4, 5, 6)], 1))


def test_cells_of_an_image_are_averaged_by_themselves_row_by_row():
    image = torch.arange(2.0 * 36 * 3).view(2, 6, 6, 3)
    tokens = {1: torch.cat([torch.full((2, PREFIX, 3), -1e6), image.flatten(1, 2)], 1)}
    cells = [image[:, i : i + 3, j : j + 3].mean((1, 2)) for i in (0, 3) for j in (0, 3)]
    torch.testing.assert_close(POOLINGS["grid2"](tokens, 1, PREFIX), torch.cat(cells, 1))
    torch.testing.assert_close(torch.stack(cells).mean(0), POOLINGS["mean"](tokens, 1, PREFIX))
    assert POOLINGS["grid4"](tokens, 1, PREFIX).shape == (2, 16 * 3)
    assert list(POOLINGS["grid2"].layers(1)) == [1]


@pytest.mark.parametrize(("name", "patches"), [("grid2", 3), ("grid2", 1), ("grid4", 9)])
def test_patches_that_are_no_square_of_cells_are_refused(name, patches):
    with pytest.raises(ValueError, match=f"{patches} patches are no square of at least"):
        POOLINGS[name]({1: torch.zeros(2, PREFIX + patches, 3)}, 1, PREFIX)


@pytest.mark.parametrize("name", ["mean4", "cls4", "cls4+mean"])
def test_the_layers_that_are_needed_are_named(name):
    assert list(POOLINGS[name].layers(6)) == [3, 4, 5, 6]
    assert POOLINGS[name].layers(3)[0] == 0  # there is none: the caller refuses it

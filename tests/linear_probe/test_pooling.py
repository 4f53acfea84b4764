"""Poolings against what they are said to be, written out."""

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


@pytest.mark.parametrize("name", ["mean4", "cls4", "cls4+mean"])
def test_the_layers_that_are_needed_are_named(name):
    assert list(POOLINGS[name].layers(6)) == [3, 4, 5, 6]
    assert POOLINGS[name].layers(3)[0] == 0  # there is none: refused by whoever asks

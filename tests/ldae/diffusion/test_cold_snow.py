"""The snow of Cold Diffusion against its formulas and numbers (arXiv 2208.09392)."""

from __future__ import annotations

import math

import pytest
import torch
from corrupted import SHAPE, at, images
from scipy import ndimage
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.snow import Snow, Snowfall, magnify
from ldae.diffusion.schedules import Cosine

LEVEL_3 = dict(mean=0.55, std=0.3, zoom=2.5, kernel=11, threshold=(1.15, 0.7), sigma=(0.05, 16.0))


def snow(T=20, **changes):
    return Snow(Cosine(T=T), SHAPE, **LEVEL_3 | changes)


def every_step(corruption, x, state, T=20):
    """x_t of one image at all steps: (T, 3, n, n)."""
    return corruption.at(
        x.expand(T, *SHAPE),
        at(*range(T)),
        Snowfall(*(s.expand(T, *s.shape[1:]) for s in (state.flakes, state.vertical))),
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_snows_more_at_every_step_on_both_sides_alike(seed):
    corruption, x0 = snow(), images(1)
    state = corruption.draw(x0, BatchGenerator([seed]))
    x_t = every_step(corruption, x0, state)
    assert (x_t >= x0 - 1e-6).all()
    assert x_t.max() <= 1
    on_black = every_step(corruption, -torch.ones(1, *SHAPE), state)
    assert torch.allclose(on_black, on_black.flip(-2, -1), atol=1e-6)
    covered = on_black > -1
    assert (covered[1:] | ~covered[:-1]).all()
    assert covered[-1].float().mean() > covered[0].float().mean() + 0.2


def _reference_layer(flakes, vertical, threshold, sigma):
    """A layer as ImageNet-C's code goes about it: cut, clip, one row of a 2-D kernel, zeros outside."""
    seen = torch.where(flakes < threshold, 0.0, flakes.double()).clip(0, 1)
    kernel = torch.zeros(11, 11, dtype=torch.float64)
    u = torch.arange(11) - 5.0
    kernel[5] = torch.softmax(-(u**2).double() / (2 * sigma**2), 0)
    kernel = kernel.rot90() if vertical else kernel
    return F.conv2d(seen[None, None], kernel[None, None], padding=5)[0, 0]


@pytest.mark.parametrize("vertical", [False, True])
def test_snow_is_flakes_above_a_threshold_blurred_along_their_way(vertical):
    corruption, x0 = snow(T=200), images(1)
    state = corruption.draw(x0, BatchGenerator([5]))
    state = Snowfall(state.flakes, torch.tensor([vertical]))
    for t in (0, 50, 120, 199):
        threshold, sigma = 1.15 + (0.7 - 1.15) * t / 199, 0.05 + (16 - 0.05) * t / 199
        layer = _reference_layer(state.flakes[0], vertical, threshold, sigma)
        expected = ((x0 + 1) / 2 + layer + layer.rot90(2)).clip(0, 1) * 2 - 1
        level = Cosine(T=200).at(torch.tensor([t]))
        assert torch.allclose(corruption.at(x0, level, state).double(), expected, atol=1e-5)


@pytest.mark.parametrize(("zoom", "n"), [(2.5, 32), (3.0, 32), (2.5, 128), (2.5, 8)])
def test_flakes_are_magnified_as_ndimage_does(zoom, n):
    side = math.ceil(n / zoom)
    field = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    for k in (0, 1):
        large = ndimage.zoom(field[k].double().numpy(), zoom, order=1)
        begin = (len(large) - n) // 2
        expected = torch.from_numpy(large[begin : begin + n, begin : begin + n])
        assert torch.allclose(magnify(field, zoom, n)[k].double(), expected, atol=1e-5)


def test_flakes_have_their_moments_and_fall_either_way_as_often():
    state = snow().draw(torch.zeros(4000, *SHAPE), BatchGenerator([0]))
    corners = state.flakes[:, ::31, ::31]  # where the interpolation leaves them as drawn
    assert corners.mean().item() == pytest.approx(0.55, abs=0.01)
    assert corners.std().item() == pytest.approx(0.3, abs=0.01)
    assert state.vertical.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_brightness_lifts_what_lies_below_a_brighter_grey():
    """Black: grey 0, so max(0, 0.5) with the share 1 - b; white stays white."""
    corruption = snow(threshold=(9.0, 9.0), brightness=(0.95, 0.4))
    state = corruption.draw(images(1), BatchGenerator([0]))
    x_t = every_step(corruption, -torch.ones(1, *SHAPE), state)
    expected = 0.5 * (1 - torch.linspace(0.95, 0.4, 20)) * 2 - 1
    assert torch.allclose(x_t, expected[:, None, None, None].expand_as(x_t), atol=1e-6)
    assert torch.allclose(every_step(corruption, torch.ones(1, *SHAPE), state), torch.ones(()), atol=1e-6)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(1, *SHAPE)
    lifted = (1.5 * 0.299 + 0.5) * 0.6
    last = every_step(corruption, red, state)[-1, :, 0, 0]
    assert last.tolist() == pytest.approx([1.0, 2 * lifted - 1, 2 * lifted - 1], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "word"), [({"kernel": 10}, "odd"), ({"sigma": (1.0,)}, "two numbers"), ({"threshold": ()}, "threshold")]
)
def test_snow_that_cannot_fall_is_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        snow(**changes)

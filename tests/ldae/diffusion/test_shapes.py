"""Holes along shapes: distances against scipy, the published round hole as a special case, inversion."""

from __future__ import annotations

import pytest
import torch
from corrupted import SHAPE, at
from scipy.ndimage import distance_transform_edt

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.mask import Mask, Placed
from ldae.diffusion.corruptions.shapes import SHAPES, distance_to_middle, draw_boxes, draw_strokes, squared_distance
from ldae.diffusion.samplers import Degradation, ImprovedColdSampling, NaiveColdSampling, sample
from ldae.diffusion.schedules import Steps
from ldae.diffusion.spacing import All
from ldae.diffusion.trajectory import Prediction, build_trajectory

T, N = 50, SHAPE[-1]


def mask(**settings):
    return Mask(Steps(T), SHAPE, first=1.1, step=0.1, **settings)


def drawn(count=6):
    """Strokes and boxes, (2 count, N, N)."""
    return torch.cat([shape(count, N, BatchGenerator([3])) for shape in SHAPES.values()])


def test_distances_are_those_of_scipy():
    shapes = drawn()
    expected = torch.stack([torch.from_numpy(distance_transform_edt(~s.numpy())) for s in shapes])
    assert torch.allclose(squared_distance(shapes).double(), expected**2, atol=1e-3)
    assert squared_distance(torch.zeros(1, 4, 4, dtype=torch.bool)).isinf().all()


@pytest.mark.parametrize("place", [(0, 0), (5, 9), (31, 12)])
def test_the_hole_of_one_pixel_is_the_published_one(place):
    corruption, white = mask(), torch.ones(T, 1, N, N)
    shape = torch.zeros(T, N, N, dtype=torch.bool)
    shape[:, place[0], place[1]] = True
    published = corruption.at(white, at(*range(T)), Placed(torch.tensor([place]).expand(T, 2)))
    assert torch.equal(corruption.at(white, at(*range(T)), corruption.along(shape, grows=True)), published)


def test_the_middle_of_a_disc_is_its_centre():
    line = torch.arange(N, dtype=torch.float32)
    distance = ((line[:, None] - 16) ** 2 + (line - 14) ** 2).sqrt()
    r = distance_to_middle((distance <= 7)[None])[0]
    assert (r - distance).abs().max() < 1.5
    assert r[16, 14] == 0


@pytest.mark.parametrize("draw", [draw_strokes, draw_boxes])
def test_shapes_depend_on_the_seed_of_their_image_alone(draw):
    together = draw(2, N, BatchGenerator([1, 2]))
    assert torch.equal(together[1:], draw(1, N, BatchGenerator([2])))
    share = draw(500, N, BatchGenerator([0])).float().mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.5


def test_the_hole_covers_its_shape_and_grows_no_further():
    corruption, shapes, white = mask(), drawn(), torch.ones(12, 1, N, N)
    state = corruption.along(shapes)
    last = corruption.at(white, at(*[T - 1] * 12), state)[:, 0]
    assert not last[shapes].any()
    assert (state.last < T - 1).all()
    before = corruption.at(white, at(*(state.last - 1).tolist()), state)[:, 0]
    assert (before[shapes].reshape(-1).max() >= 1 / 255).all()
    assert (before >= last).all()
    assert torch.equal(corruption.at(white, at(*state.last.tolist()), state)[:, 0], last)


def test_a_hole_that_no_step_covers_is_empty_at_the_last_one():
    shape = torch.zeros(1, N, N, dtype=torch.bool)
    shape[:, 2:30, 2:30] = True
    corruption = mask()
    state = corruption.along(shape)
    assert state.last.tolist() == [T - 1]
    assert not corruption.at(torch.ones(1, 1, N, N), at(T - 1), state)[0, 0, 2:30, 2:30].any()


@pytest.mark.parametrize("rule", [ImprovedColdSampling, NaiveColdSampling])
def test_a_perfect_network_fills_every_hole_from_the_known_pixels(rule):
    corruption, shapes = mask(), drawn()
    x0 = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    state = corruption.along(shapes)
    x_T = corruption.at(x0.masked_fill(shapes[:, None], 0.7), at(*[T - 1] * 12), state)
    assert torch.equal(x_T, corruption.at(x0, at(*[T - 1] * 12), state))  # the missing pixels are not in x_T
    bound = rule().bind(Degradation(corruption, state))
    trajectory = build_trajectory(Steps(T), All().steps(T))
    end = sample(lambda x, step: Prediction(x0), bound, x_T, trajectory, BatchGenerator([0]))
    assert torch.allclose(end, x0, atol=1e-5)


def test_training_holes_along_shapes_grow_to_the_last_step():
    corruption = mask(shapes="strokes")
    state = corruption.draw(torch.zeros(4, *SHAPE), BatchGenerator([0]))
    kept = corruption.at(torch.ones(T, 1, N, N), at(*range(T)), corruption.along(drawn()[:1].expand(T, N, N), True))
    assert state.last.tolist() == [T - 1] * 4
    assert (kept.diff(dim=0) <= 0).all()
    with pytest.raises(ConfigError, match="centred"):
        mask(shapes="boxes", centred=True)

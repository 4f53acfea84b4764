"""The degradations of Cold Diffusion: common laws, and resolution, colour and blend (arXiv 2208.09392)."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from corrupted import SHAPE, at, built, images
from torch.nn import functional as F

from ldae.config.choices import choices_of
from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.base import State
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.corruptions.colour import Colour
from ldae.diffusion.corruptions.pixelate import Pixelate
from ldae.diffusion.schedules import Cosine

PRETRAINING = {"component_mask", "gaussian_spectrum"}  # no sampler inverts these; test_component_mask.py
NAMES = [name for name in choices_of("corruption") if name not in PRETRAINING]
PUBLISHED = {"blur": 50, "blur_generation": 300, "mask": 50, "colour_mask": 750, "snow": 200, "colour": 20}
BEYOND = {"gaussian": 10.0, "blend": math.sqrt(2), "pixelate": 1.375**2}  # the others stay within [-1, 1]


def thirds(T):
    """The first step, one in between, the last: 1..T."""
    return 1, (T + 1) // 2, T


def degradation(corruption, schedule, state):
    """D(x, s) for s = 0..T, D(x, 0) = x."""

    def degrade(x, s):
        return corruption.at(x, schedule.at(torch.full((len(x),), s - 1)), state) if s else x

    return degrade


def _reference_naive(degrade, x, T, restore):
    for s in range(T, 0, -1):
        x = degrade(restore(x, s), s - 1)
    return x


def _reference_improved(degrade, x, T, restore):
    for s in range(T, 0, -1):
        guess = restore(x, s)
        x = x - degrade(guess, s) + degrade(guess, s - 1)
    return x


def only(state, k):
    """The state of image k alone."""
    return replace(state, **{f.name: getattr(state, f.name)[k : k + 1] for f in fields(state)})


# laws of every corruption that a sampler inverts


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_range_are_kept_and_every_step_differs(name):
    corruption, schedule = built(name)
    x0 = images()
    degrade = degradation(corruption, schedule, corruption.draw(x0, BatchGenerator([1])))
    before = x0
    for s in thirds(schedule.T):
        x_t = degrade(x0, s)
        assert x_t.shape == x0.shape
        assert x_t.dtype == torch.float32
        assert x_t.abs().max() <= BEYOND.get(name, 1) + 1e-5
        assert (x_t - before).abs().max() > 1e-3
        before = x_t


@pytest.mark.parametrize("name", NAMES)
def test_one_state_gives_one_output_and_other_draws_another(name):
    corruption, schedule = built(name)
    x0, level = images(3), schedule.at(torch.tensor(thirds(schedule.T)) - 1)
    state = corruption.draw(x0, BatchGenerator([1]))
    first = corruption.at(x0, level, state)
    assert torch.equal(corruption.at(x0, level, state), first)
    assert torch.equal(corruption.at(x0, level, corruption.draw(x0, BatchGenerator([1]))), first)
    if type(state) is not State:
        assert not torch.allclose(corruption.at(x0, level, corruption.draw(x0, BatchGenerator([2]))), first, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_at_mixed_steps_is_its_images_one_at_a_time(name):
    corruption, schedule = built(name)
    x0, t = images(6), torch.tensor(thirds(schedule.T))[[2, 0, 1, 1, 2, 0]] - 1
    state = corruption.draw(x0, BatchGenerator([1]))
    batch = corruption.at(x0, schedule.at(t), state)
    for k in range(6):
        alone = corruption.at(x0[k : k + 1], schedule.at(t[k : k + 1]), only(state, k))
        assert torch.allclose(batch[k : k + 1], alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_draws_of_a_slice_are_its_own(name):
    """On two processes as on one."""
    corruption, schedule = built(name)
    x0, level = images(4), schedule.at(torch.tensor(thirds(schedule.T))[[0, 1, 2, 1]] - 1)
    whole = corruption.at(x0, level, corruption.draw(x0, BatchGenerator([1, 2])))
    for k in (0, 1):
        half, part = x0[2 * k : 2 * k + 2], schedule.at(level.t[2 * k : 2 * k + 2])
        assert torch.allclose(
            corruption.at(half, part, corruption.draw(half, BatchGenerator([k + 1]))),
            whole[2 * k : 2 * k + 2],
            atol=1e-6,
        )


@pytest.mark.parametrize("name", NAMES)
def test_with_a_perfect_restoration_both_algorithms_return_the_image(name):
    """At the published T: flakes, positions, noise and second images are drawn once."""
    T = PUBLISHED.get(name, 3)
    corruption, schedule = built(name, T)
    x0 = images(2)
    degrade = degradation(corruption, schedule, corruption.draw(x0, BatchGenerator([1])))
    x_T = degrade(x0, T)
    for algorithm in (_reference_naive, _reference_improved):
        assert torch.allclose(algorithm(degrade, x_T, T, lambda x, s: x0), x0, atol=1e-5)


@pytest.mark.parametrize("name", ["mask", "blur_generation"])
def test_what_8_bits_cut_off_at_the_start_is_kept_by_one_algorithm_and_forgotten_by_the_other(name):
    corruption, schedule = built(name, T=20)
    x0, level = images(2), schedule.at(torch.full((2,), 19))
    state = corruption.draw(x0, BatchGenerator([1]))
    x_T, shown = corruption.at(x0, level, state), corruption.corrupt(x0, level, state)
    cut = shown - x_T
    assert cut.min() > -2 / 255 - 1e-6
    assert cut.max() < 1e-6
    assert cut.min() < -1 / 255
    assert torch.allclose((shown + 1) * 127.5, ((shown + 1) * 127.5).round(), atol=1e-3)
    degrade = degradation(corruption, schedule, state)
    end = _reference_improved(degrade, shown, 20, lambda x, s: x0)
    assert torch.allclose(end - x0, cut, atol=1e-5)
    assert torch.allclose(_reference_naive(degrade, shown, 20, lambda x, s: x0), x0, atol=1e-6)


# resolution


def _reference_pixelate(x, t, mode):
    for i in range(t + 1):
        small = F.interpolate(x, size=x.shape[-1] // 2 ** (i + 1), mode=mode)
        x = F.interpolate(small, size=x.shape[-1], mode="nearest-exact")
    return x


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("t", [0, 1, 2, 4])
def test_pixels_are_halved_step_by_step_into_flat_blocks(mode, t):
    x0 = images(2)
    x_t = Pixelate(Cosine(T=5), SHAPE, filter=mode).at(x0, at(t, t), State())
    block = 2 ** (t + 1)
    corner = x_t[:, :, ::block, ::block]
    assert torch.allclose(x_t, corner.repeat_interleave(block, 2).repeat_interleave(block, 3), atol=1e-6)
    assert torch.allclose(x_t, _reference_pixelate(x0, t, mode), atol=1e-5)
    if mode != "bicubic":
        assert torch.allclose(corner, F.avg_pool2d(x0, block), atol=1e-6)


def test_bicubic_without_antialiasing_weighs_four_pixels_at_first_and_blocks_from_then_on():
    corruption = Pixelate(Cosine(T=3), (3, 8, 8))
    rows = torch.eye(8)[:, None, :, None].expand(8, 1, 8, 8)  # image k is white in row k
    weights = corruption.at(rows, at(*[0] * 8), State())[:, 0, 2, 0]
    assert weights.tolist() == pytest.approx([0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], abs=1e-6)
    x0 = images(1, n=8)
    first, second = (corruption.at(x0, at(t), State()) for t in (0, 1))
    assert torch.allclose(second[:, :, ::4, ::4], F.avg_pool2d(first, 4), atol=1e-6)


def test_an_image_that_cannot_be_halved_so_often_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.T=6 is more often than 32 pixels can be halved"):
        Pixelate(Cosine(T=6), SHAPE)


# colour, blend


def test_colour_fades_by_equal_steps_to_grey():
    """Against the recursion x_t = (1 - a) x_{t-1} + a grey."""
    T, x0 = 20, images(1)
    corruption, step, kept = Colour(Cosine(T=T)), x0.double(), 1.0
    mean = x0.mean(1, keepdim=True)
    for i in range(T):
        f = 1 - (1 / T) / (1 - i / T)
        step, kept = f * step + (1 - f) * step.mean(1, keepdim=True), kept * f
        x_t = corruption.at(x0, at(i), State())
        assert kept == pytest.approx(1 - (i + 1) / T, abs=1e-12)
        assert torch.allclose(x_t.double(), step, atol=1e-5)
        assert torch.allclose(x_t, kept * x0 + (1 - kept) * mean, atol=1e-5)
    assert torch.equal(x_t[:, 0], x_t[:, 1])
    assert torch.equal(x_t[:, 0], x_t[:, 2])


def test_blend_mixes_with_images_of_the_pool_each_as_often():
    pool = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, *SHAPE) * 85  # 0, 85, 170, 255
    corruption, schedule, x0 = Blend(), Cosine(T=200), images(2000)
    corruption.set_images(pool)
    state = corruption.draw(x0, BatchGenerator([0]))
    level = schedule.at(torch.arange(2000) % 200)
    alpha = (schedule.gamma[level.t] ** 2).float()[:, None, None, None]
    x_t = corruption.at(x0, level, state)
    assert torch.allclose(x_t, alpha.sqrt() * x0 + (1 - alpha).sqrt() * state.eps, atol=1e-5)
    values, counts = state.eps[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-6)
    assert (counts - 500).abs().max() < 100


def test_blend_without_second_images_is_one_sentence():
    corruption, x0 = Blend(), images(2)
    with pytest.raises(ConfigError, match=r"no images to blend in; give it some by set_images"):
        corruption.draw(x0, BatchGenerator([0]))
    corruption.set_images(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"\(3, 8, 8\) to blend into \(3, 32, 32\)"):
        corruption.draw(x0, BatchGenerator([0]))

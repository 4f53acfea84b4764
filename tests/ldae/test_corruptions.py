"""The degradations of Cold Diffusion against their formulas and numbers (spec: cold_diffusion.md)."""

from __future__ import annotations

import functools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from _cli import CONFIGS, compose, resolved
from scipy import ndimage
from torch.nn import functional as F

from ldae.diffusion.corruptions.base import State
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.corruptions.blur import Blur, taps
from ldae.diffusion.corruptions.colour import Colour
from ldae.diffusion.corruptions.colour_mask import ColourMask
from ldae.diffusion.corruptions.mask import Mask, Placed
from ldae.diffusion.corruptions.pixelate import Pixelate
from ldae.diffusion.corruptions.snow import Snow, Snowfall, magnified
from ldae.diffusion.schedules import Cosine
from ldae.errors import ConfigError
from ldae.system import System
from ldae.types import Draws

SHAPE = (3, 32, 32)
NAMES = sorted(p.stem for p in CONFIGS.glob("corruption/*.yaml") if not p.name.startswith("_"))
PUBLISHED = {"blur": 50, "blur_generation": 300, "mask": 50, "colour_mask": 750, "snow": 200, "colour": 20}
TRIED = {"colour_mask": 200}  # with few steps its holes are no wider than a pixel; 3 steps for the others
BEYOND = {"gaussian": 10.0, "blend": math.sqrt(2), "pixelate": 1.375**2}  # the others stay within [-1, 1]
LEVEL_3 = dict(mean=0.55, std=0.3, zoom=2.5, kernel=11, threshold=(1.15, 0.7), sigma=(0.05, 16.0))


def images(count=4, seed=0, n=32):
    """Even in [-1, 1], not only around 0."""
    return 2 * torch.rand(count, 3, n, n, generator=torch.Generator().manual_seed(seed)) - 1


def at(*t):
    return Cosine(T=max(*t, 1) + 1).at(torch.tensor(t))


@functools.cache
def built(name, T=None):
    """The corruption of a config, for 32 x 32 pixels, and its schedule."""
    words = ("data=cifar10", "schedule=cosine", f"schedule.T={T or TRIED.get(name, 3)}")
    system = System(resolved(compose("pretrain", [f"corruption={name}", *words])))
    corruption = system["corruption"]
    if isinstance(corruption, Blend):
        corruption.show(torch.randint(256, (5, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(9)))
    return corruption, system["schedule"]


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


# what every corruption of configs/corruption promises


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_range_are_kept_and_every_step_differs(name):
    corruption, schedule = built(name)
    x0 = images()
    degrade = degradation(corruption, schedule, corruption.draw(x0, Draws([1])))
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
    state = corruption.draw(x0, Draws([1]))
    first = corruption.at(x0, level, state)
    assert torch.equal(corruption.at(x0, level, state), first)
    assert torch.equal(corruption.at(x0, level, corruption.draw(x0, Draws([1]))), first)
    if type(state) is not State:
        assert not torch.allclose(corruption.at(x0, level, corruption.draw(x0, Draws([2]))), first, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_at_mixed_steps_is_its_images_one_at_a_time(name):
    corruption, schedule = built(name)
    x0, t = images(6), torch.tensor(thirds(schedule.T))[[2, 0, 1, 1, 2, 0]] - 1
    state = corruption.draw(x0, Draws([1]))
    batch = corruption.at(x0, schedule.at(t), state)
    for k in range(6):
        alone = corruption.at(x0[k : k + 1], schedule.at(t[k : k + 1]), only(state, k))
        assert torch.allclose(batch[k : k + 1], alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_draws_of_a_slice_are_its_own(name):
    """On two processes as on one."""
    corruption, schedule = built(name)
    x0, level = images(4), schedule.at(torch.tensor(thirds(schedule.T))[[0, 1, 2, 1]] - 1)
    whole = corruption.at(x0, level, corruption.draw(x0, Draws([1, 2])))
    for k in (0, 1):
        half, part = x0[2 * k : 2 * k + 2], schedule.at(level.t[2 * k : 2 * k + 2])
        assert torch.allclose(
            corruption.at(half, part, corruption.draw(half, Draws([k + 1]))), whole[2 * k : 2 * k + 2], atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_with_a_perfect_restoration_both_algorithms_return_the_image(name):
    """Spec, test 3, at the published T: flakes, places, noise and partners are drawn once."""
    T = PUBLISHED.get(name, 3)
    corruption, schedule = built(name, T)
    x0 = images(2)
    degrade = degradation(corruption, schedule, corruption.draw(x0, Draws([1])))
    x_T = degrade(x0, T)
    for algorithm in (_reference_naive, _reference_improved):
        assert torch.allclose(algorithm(degrade, x_T, T, lambda x, s: x0), x0, atol=1e-5)


@pytest.mark.parametrize("name", ["mask", "blur_generation"])
def test_what_8_bits_cut_off_at_the_start_is_kept_by_one_algorithm_and_forgotten_by_the_other(name):
    corruption, schedule = built(name, T=20)
    x0, level = images(2), schedule.at(torch.full((2,), 19))
    state = corruption.draw(x0, Draws([1]))
    x_T, shown = corruption.at(x0, level, state), corruption.observed(x0, level, state)
    cut = shown - x_T
    assert cut.min() > -2 / 255 - 1e-6
    assert cut.max() < 1e-6
    assert cut.min() < -1 / 255
    assert torch.allclose((shown + 1) * 127.5, ((shown + 1) * 127.5).round(), atol=1e-3)
    degrade = degradation(corruption, schedule, state)
    end = _reference_improved(degrade, shown, 20, lambda x, s: x0)
    assert torch.allclose(end - x0, cut, atol=1e-5)
    assert torch.allclose(_reference_naive(degrade, shown, 20, lambda x, s: x0), x0, atol=1e-6)


# blur


def _reference_blur(x, sigmas, kernel, mode):
    """One convolution after another, each with a two-dimensional kernel, float64."""
    u = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    for sigma in sigmas:
        k = torch.exp(-(u[:, None] ** 2 + u**2) / (2 * sigma**2))
        k = (k / k.sum()).expand(3, 1, kernel, kernel)
        x = F.conv2d(F.pad(x, [kernel // 2] * 4, mode=mode), k, groups=3)
    return x


BLURS = {
    "mnist": (dict(kernel=11, first=7.0, padding="circular"), 20),
    "cifar10": (dict(kernel=11, first=0.35, step=0.01, padding="reflect"), 50),
    "generation": (dict(kernel=27, first=1.0, growth=0.01, padding="circular"), 30),
}


@pytest.mark.parametrize("name", BLURS)
def test_blur_is_one_convolution_after_another(name):
    settings, T = BLURS[name]
    blur, x0 = Blur(Cosine(T=T), SHAPE, **settings), images(1)
    for t in (0, 1, T // 2, T - 1):
        expected = _reference_blur(x0.double(), blur.sigma[: t + 1], settings["kernel"], settings["padding"])
        assert torch.allclose(blur.at(x0, at(t), State()).double(), expected, atol=1e-6)


def test_circular_blur_is_one_product_of_fourier_transforms():
    blur, x0 = Blur(Cosine(T=20), SHAPE, kernel=11, first=7.0, padding="circular"), images(2)
    line = F.pad(taps(7.0, 11), (0, 32 - 11)).roll(-5)
    kernel = torch.fft.fft2(line[:, None] * line)
    for t in (0, 6, 19):
        expected = torch.fft.ifft2(torch.fft.fft2(x0.double()) * kernel ** (t + 1)).real
        assert torch.allclose(blur.at(x0, at(t, t), State()).double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", BLURS)
def test_blur_leaves_flat_images_alone_and_circular_blur_every_mean(name):
    settings, T = BLURS[name]
    blur, x0, last = Blur(Cosine(T=T), SHAPE, **settings), images(2), at(T - 1, T - 1)
    flat = torch.tensor([-1.0, 0.3, 1.0])[:, None, None].expand(2, 3, 32, 32)
    assert torch.allclose(blur.at(flat, last, State()), flat, atol=1e-6)
    means = [x.double().mean((2, 3)) for x in (x0, blur.at(x0, last, State()))]
    assert torch.allclose(*means, atol=1e-6) == (settings["padding"] == "circular")


@pytest.mark.parametrize(
    ("sigmas", "kernel", "pixels"),
    [
        ([7.0] * 20, 11, 13.6),
        ([7.0] * 40, 11, 19.2),
        ([0.01 * i + 0.35 for i in range(50)], 11, 4.18),
        ([math.exp(0.01 * i) for i in range(200)], 15, 39),
        ([math.exp(0.01 * i) for i in range(300)], 27, 86),
    ],
)
def test_blur_is_as_wide_as_its_cut_kernels_add_up_to(sigmas, kernel, pixels):
    offset = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    weights = [taps(sigma, kernel) for sigma in sigmas]
    assert all(w.sum().item() == pytest.approx(1, abs=1e-6) for w in weights)
    assert math.sqrt(sum((w * offset**2).sum() for w in weights)) == pytest.approx(pixels, rel=0.01)


def test_a_wide_gaussian_in_few_taps_is_much_narrower():
    offset = torch.arange(11) - 5.0
    assert (taps(7.0, 11) * offset**2).sum().item() == pytest.approx(9.23, abs=0.005)


def test_the_published_blurs_are_those_of_their_configs():
    assert built("blur", 50)[0].sigma.tolist() == pytest.approx([0.01 * i + 0.35 for i in range(50)])
    assert built("blur_generation", 300)[0].sigma.tolist() == pytest.approx(np.exp(0.01 * np.arange(300)))


def test_blur_for_generation_ends_in_the_mean_of_every_channel():
    corruption, _ = built("blur_generation", 300)
    x0 = images(2)
    mean = x0.mean((2, 3), keepdim=True)
    end, before = (corruption.at(x0, at(t, t), State()) for t in (299, 10))
    assert torch.allclose(end, mean.expand_as(x0), atol=1e-6)
    assert (before - mean).abs().max() > 0.01


@pytest.mark.parametrize(("kernel", "word"), [(10, "odd"), (65, "reflect images of 32")])
def test_kernels_that_have_no_middle_or_do_not_fit_are_refused(kernel, word):
    with pytest.raises(ConfigError, match=word):
        Blur(Cosine(T=5), SHAPE, kernel=kernel, first=1.0)


# masks


def _reference_masks(beta, centre, n):
    """The cumulative mask at every step, pixel by pixel as the paper writes it: (T, n, n)."""
    y, x = torch.meshgrid(*2 * [torch.arange(n, dtype=torch.float64)], indexing="ij")
    r2 = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return torch.stack([1 - torch.exp(-r2 / (2 * b**2)) for b in beta]).cumprod(0)


def shown_mask(mask, T, centre, n=32):
    """What a mask leaves of a white image at every step: (T, n, n)."""
    state = Placed(torch.tensor([centre]).expand(T, 2))
    return mask.at(torch.ones(T, 1, n, n), at(*range(T)), state)[:, 0]


@pytest.mark.parametrize("centre", [(-1, -1), (15, 15), (3, 31), (31, 31)])
def test_the_mask_is_the_product_of_gaussian_holes(centre):
    mask = shown_mask(Mask(Cosine(T=50), SHAPE, first=1.1, step=0.1), 50, centre)
    expected = _reference_masks([1.1 + 0.1 * i for i in range(50)], centre, 32)
    assert torch.allclose(mask.double(), expected, atol=1e-6)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert (mask.diff(dim=0) <= 0).all()
    if -1 not in centre:
        assert (mask[:, centre[0], centre[1]] == 0).all()


def test_the_mask_of_celeba_has_its_numbers():
    """Spec, section 2.2."""
    shape = (3, 128, 128)
    corruption = Mask(Cosine(T=100), shape, first=0.2, step=0.2, centred=True)
    white = torch.ones(1, *shape)
    state = corruption.draw(white, Draws([0]))
    mask = corruption.at(white, at(99), state)[0, 0]
    assert state.centre.tolist() == [[63, 63]]
    assert mask[63, 63] == 0
    assert mask.mean().item() == pytest.approx(0.5256, abs=1e-3)
    assert mask[-1, -1].item() == pytest.approx(0.99976, abs=1e-4)
    assert (mask < 0.5).float().mean().item() == pytest.approx(0.448, abs=1e-3)


def test_random_centres_are_even_from_minus_one_to_the_last_pixel():
    mask = Mask(Cosine(T=2), SHAPE, first=1.1, step=0.1)
    centre = mask.draw(torch.zeros(66_000, 1, 1, 1), Draws([0])).centre
    for axis in (0, 1):
        counts = torch.bincount(centre[:, axis] + 1, minlength=33)
        assert len(counts) == 33
        assert (counts / 2000 - 1).abs().max() < 0.12  # 5 standard deviations
    assert torch.corrcoef(centre.T.float())[0, 1].abs() < 0.02


def test_the_colour_mask_closes_in_from_the_border():
    """Spec, section 4 and test 12: weights of image and colour sum to 1; at T all is colour."""
    T, shape = 750, (3, 128, 128)
    corruption = ColourMask(Cosine(T=T), shape, first=0.05, step=0.05)
    black, white = torch.zeros(1, *shape), torch.ones(1, *shape)
    state = corruption.draw(black, Draws([3]))
    colour = state.eps[:, :, :1, :1]
    assert colour.abs().max() <= 0.5
    assert torch.equal(corruption.at(7 * white, at(T - 1), state), state.eps)

    def weights(t):
        of_colour = corruption.at(black, at(t), state) / colour
        return corruption.at(white, at(t), state) - of_colour * colour, of_colour

    for t in (0, 300, T - 2, T - 1):
        of_image, of_colour = weights(t)
        assert torch.allclose(of_image + of_colour, torch.ones(()), atol=1e-5)
    _, of_colour = weights(T - 2)
    assert of_colour[0, 0, 63, 63] == 0
    assert (of_colour[0, 0] < 0.999).sum() == 1
    first = weights(0)[1][0, 0]
    assert first[0, 0].item() == pytest.approx(0.0038, abs=1e-4)
    assert first.max() == first[-1, -1]
    assert first.max().item() == pytest.approx(0.0070, abs=1e-4)
    expected = _reference_masks([0.05 * (i + 1) for i in range(T - 1)], (63, 63), 128)
    for t in (0, 300, 700):
        assert torch.allclose(weights(t)[1][0, 0].double(), expected[T - 2 - t], atol=1e-5)


def test_fill_colours_are_even_around_mid_grey():
    corruption = ColourMask(Cosine(T=3), SHAPE, first=1.0, step=0.0)
    colours = corruption.draw(torch.zeros(20_000, 3, 1, 1), Draws([0])).eps.flatten(1)
    assert colours.abs().max() <= 0.5
    assert colours.mean(0).abs().max() < 0.01
    assert (colours.std(0) - 1 / math.sqrt(12)).abs().max() < 0.005


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


# snow


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
    state = corruption.draw(x0, Draws([seed]))
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
    state = corruption.draw(x0, Draws([5]))
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
        assert torch.allclose(magnified(field, zoom, n)[k].double(), expected, atol=1e-5)


def test_flakes_have_their_moments_and_fall_either_way_as_often():
    state = snow().draw(torch.zeros(4000, *SHAPE), Draws([0]))
    corners = state.flakes[:, ::31, ::31]  # where the interpolation leaves them as drawn
    assert corners.mean().item() == pytest.approx(0.55, abs=0.01)
    assert corners.std().item() == pytest.approx(0.3, abs=0.01)
    assert state.vertical.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_brightness_lifts_what_lies_below_a_brighter_grey():
    """Black: grey 0, so max(0, 0.5) with the share 1 - b; white stays white."""
    corruption = snow(threshold=(9.0, 9.0), brightness=(0.95, 0.4))
    state = corruption.draw(images(1), Draws([0]))
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


# colour, blend


def test_colour_fades_by_equal_steps_to_grey():
    """Spec, test 10, and the recursion of section 2.5."""
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
    corruption.show(pool)
    state = corruption.draw(x0, Draws([0]))
    level = schedule.at(torch.arange(2000) % 200)
    alpha = (schedule.gamma[level.t] ** 2).float()[:, None, None, None]
    x_t = corruption.at(x0, level, state)
    assert torch.allclose(x_t, alpha.sqrt() * x0 + (1 - alpha).sqrt() * state.eps, atol=1e-5)
    values, counts = state.eps[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-6)
    assert (counts - 500).abs().max() < 100


def test_blend_without_fitting_partners_says_so():
    corruption, x0 = Blend(), images(2)
    with pytest.raises(ConfigError, match=r"no images to blend in; give it some by show"):
        corruption.draw(x0, Draws([0]))
    corruption.show(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"\(3, 8, 8\) to blend into \(3, 32, 32\)"):
        corruption.draw(x0, Draws([0]))

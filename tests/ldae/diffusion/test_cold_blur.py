"""The blur of Cold Diffusion against its formulas and numbers (arXiv 2208.09392)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from corrupted import SHAPE, at, built, images
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.diffusion.corruptions.base import State
from ldae.diffusion.corruptions.blur import Blur, taps
from ldae.diffusion.schedules import Cosine


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

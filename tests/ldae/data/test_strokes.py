"""Guides for SDEdit: colours of a palette in flat regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ldae.data.strokes import simulate_strokes


def colours_of(image):
    return torch.unique((image * 255).round().flatten(1), dim=1).T


@pytest.fixture(scope="module")
def images():
    y, x = np.mgrid[:48, :48] / 48
    waves = [np.sin(7 * x + k) * np.cos(5 * y - k) / 2 + 0.5 for k in range(6)]
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 3, 48, 48))
    return torch.from_numpy((np.array(waves).reshape(2, 3, 48, 48) + noise).clip(0, 1)).float()


@pytest.mark.parametrize("palette", ["median_cut", "kmeans"])
def test_a_painting_has_no_more_colours_than_its_palette(images, palette):
    for colours in (2, 6):
        for image in simulate_strokes(images, 3, colours, palette):
            assert 2 <= len(colours_of(image)) <= colours
    again = simulate_strokes(images, 3, 6, palette)
    assert torch.equal(again, simulate_strokes(images, 3, 6, palette))
    assert torch.equal(again[1:], simulate_strokes(images[1:], 3, 6, palette))  # of the image alone


def test_median_cut_is_pillow_s(images):
    for image, painted in zip(images, simulate_strokes(images, 5, 6), strict=True):
        picture = Image.fromarray((image * 255).round().byte().movedim(0, -1).numpy())
        expected = np.asarray(picture.filter(ImageFilter.MedianFilter(5)).quantize(6).convert("RGB"))
        assert np.array_equal((painted * 255).round().byte().movedim(0, -1).numpy(), expected)


def test_an_image_of_flat_regions_is_its_own_painting():
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    pixels[:, 0, :, 16:] = 200 / 255
    pixels[:, 1, 20:, :] = 90 / 255
    flat = torch.from_numpy(pixels)
    for colours in (4, 9):
        assert torch.equal((simulate_strokes(flat, 3, colours, "kmeans") * 255).round(), (flat * 255).round())


def test_k_means_leaves_regions_without_single_pixels(images):
    def lonely(image):
        """Return the number of pixels whose colour none of the four neighbours has."""
        padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), value=-1)[0]
        neighbours = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        return int((~torch.stack([(image == n).all(0) for n in neighbours]).any(0)).sum())

    noisy = (images + 0.15 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for image in simulate_strokes(noisy, 5, 6, "kmeans"):
        assert lonely(image) == 0


def test_the_colours_are_means_of_the_pixels_nearest_to_them(images):
    image = images[:1]
    painted = simulate_strokes(image, 1, 4, "kmeans")  # strokes of one pixel: the palette alone
    pixels, centres = (image[0] * 255).round().flatten(1).T, colours_of(painted[0])
    nearest = torch.cdist(pixels, centres).argmin(1)
    for k, centre in enumerate(centres):
        assert torch.allclose(pixels[nearest == k].mean(0), centre, atol=1.5)

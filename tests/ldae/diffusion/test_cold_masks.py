"""The masks of Cold Diffusion, Gaussian and coloured, against their formulas (arXiv 2208.09392)."""

from __future__ import annotations

import math

import pytest
import torch
from corrupted import SHAPE, at

from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.colour_mask import ColourMask
from ldae.diffusion.corruptions.mask import Mask, Placed
from ldae.diffusion.schedules import Cosine


def _reference_masks(beta, centre, n):
    """The cumulative mask at every step, pixel by pixel as the paper writes it: (T, n, n)."""
    y, x = torch.meshgrid(*2 * [torch.arange(n, dtype=torch.float64)], indexing="ij")
    r2 = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return torch.stack([1 - torch.exp(-r2 / (2 * b**2)) for b in beta]).cumprod(0)


def shown_mask(mask, T, centre, n=32):
    """Return the part of a white image that a mask leaves at every step, (T, n, n)."""
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
    """At T = 100, beta_i = 0.2 (i + 1), 128 px: half of the image is left, nothing at the centre."""
    shape = (3, 128, 128)
    corruption = Mask(Cosine(T=100), shape, first=0.2, step=0.2, centred=True)
    white = torch.ones(1, *shape)
    state = corruption.draw(white, BatchGenerator([0]))
    mask = corruption.at(white, at(99), state)[0, 0]
    assert state.centre.tolist() == [[63, 63]]
    assert mask[63, 63] == 0
    assert mask.mean().item() == pytest.approx(0.5256, abs=1e-3)
    assert mask[-1, -1].item() == pytest.approx(0.99976, abs=1e-4)
    assert (mask < 0.5).float().mean().item() == pytest.approx(0.448, abs=1e-3)


def test_random_centres_are_even_from_minus_one_to_the_last_pixel():
    mask = Mask(Cosine(T=2), SHAPE, first=1.1, step=0.1)
    centre = mask.draw(torch.zeros(66_000, 1, 1, 1), BatchGenerator([0])).centre
    for axis in (0, 1):
        counts = torch.bincount(centre[:, axis] + 1, minlength=33)
        assert len(counts) == 33
        assert (counts / 2000 - 1).abs().max() < 0.12  # 5 standard deviations
    assert torch.corrcoef(centre.T.float())[0, 1].abs() < 0.02


def test_the_colour_mask_closes_in_from_the_border():
    """Weights of image and colour sum to 1; at T all is colour."""
    T, shape = 750, (3, 128, 128)
    corruption = ColourMask(Cosine(T=T), shape, first=0.05, step=0.05)
    black, white = torch.zeros(1, *shape), torch.ones(1, *shape)
    state = corruption.draw(black, BatchGenerator([3]))
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
    colours = corruption.draw(torch.zeros(20_000, 3, 1, 1), BatchGenerator([0])).eps.flatten(1)
    assert colours.abs().max() <= 0.5
    assert colours.mean(0).abs().max() < 0.01
    assert (colours.std(0) - 1 / math.sqrt(12)).abs().max() < 0.005

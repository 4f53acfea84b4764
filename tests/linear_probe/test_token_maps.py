"""Laws of the maps of patch tokens and of attention."""

from __future__ import annotations

import math

import pytest
import torch

from linear_probe.token_maps import pca_rgb, summarise_attention


def test_colours_are_the_leading_components_of_all_images():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([5.0, 3.0, 2.0, 0.01, 0.01])
    truth = torch.randn(2, 40, 5, generator=generator).exp() * scales  # skewed: the sign is determined
    basis = torch.linalg.qr(torch.randn(8, 5, generator=generator))[0]
    colours, fraction = pca_rgb(truth @ basis.T + 7)
    x = (truth - truth.mean((0, 1))).reshape(80, 5).double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    expected = x @ vectors[:, -3:].flip(1)
    expected = expected * expected.pow(3).sum(0).sign()
    expected = (expected - expected.amin(0)) / (expected.amax(0) - expected.amin(0))
    assert colours.shape == (2, 40, 3)
    assert torch.allclose(colours.reshape(80, 3), expected.float(), atol=1e-4)
    assert fraction == pytest.approx(float(values[-3:].sum() / values.sum()))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert torch.allclose(pca_rgb((truth @ basis.T) @ rotation)[0], colours, atol=1e-4)


def test_equal_tokens_are_grey_and_one_direction_has_one_colour():
    assert torch.equal(pca_rgb(torch.ones(1, 9, 4))[0], torch.full((1, 9, 3), 0.5))
    line = torch.linspace(0, 1, 9)[None, :, None] ** 2 * torch.ones(4)
    colours, fraction = pca_rgb(line)
    assert fraction == pytest.approx(1)
    assert torch.allclose(colours[0, :, 0], torch.linspace(0, 1, 9) ** 2, atol=1e-5)
    assert torch.equal(colours[..., 1:], torch.full((1, 9, 2), 0.5))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_uniform_attention_is_one_everywhere(prefix):
    count = 6 * 6 + prefix
    summary = summarise_attention(torch.full((2, 3, count, count), 1 / count), (6, 6), 7, prefix)
    assert torch.allclose(summary.received, torch.ones(2, 3, 36))
    assert torch.allclose(summary.of_query, torch.ones(2, 3, 36))
    assert summary.entropy == pytest.approx(1)
    pairs = [math.dist((a // 6, a % 6), (b // 6, b % 6)) for a in range(36) for b in range(36)]
    assert summary.distance == pytest.approx(sum(pairs) / 36**2, rel=1e-5)


def test_attention_to_one_patch_is_there_and_has_no_entropy():
    A = torch.zeros(1, 1, 5, 5)
    A[..., 4] = 1  # every token attends to the last patch of a class token and 2 x 2 patches
    A[0, 0, 0] = torch.tensor([0.2, 0.8, 0, 0, 0])
    summary = summarise_attention(A, (2, 2), 1, prefix=1)
    assert summary.received[0, 0].tolist() == pytest.approx([4, 0, 0, 0])  # from the class token, in units of 1 / 5
    assert summary.of_query[0, 0].tolist() == pytest.approx([0, 0, 0, 5])
    assert summary.entropy == 0
    assert summary.distance == pytest.approx((math.sqrt(2) + 1 + 1 + 0) / 4)

"""Classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import Cond, NoiseLevel
from ldae.denoisers.guidance import Guided
from ldae.denoisers.vit import ViTDenoiser

LEVEL = NoiseLevel(torch.tensor([3, 900, 40]), torch.ones(3), torch.zeros(3))
COND = Cond(label=torch.tensor([0, 4, 2]))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = ViTDenoiser((4, 8, 8), (8, 8, 8), (4, 4), 32, 1, 1, 4, cond_ratio=1.0, cond_layers=2, classes=5)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_scale_one_is_the_conditional_network_and_zero_the_unconditional(network, x):
    conditional, unconditional = network(x, LEVEL, COND), network(x, LEVEL)
    assert (conditional[:, :4] - unconditional[:, :4]).abs().max() > 0.1
    assert torch.allclose(Guided(network, 1.0, 4)(x, LEVEL, COND), conditional, atol=1e-6)
    assert torch.allclose(Guided(network, 0.0, 4)(x, LEVEL, COND)[:, :4], unconditional[:, :4], atol=1e-6)


def test_guidance_extrapolates_along_the_class_difference(network, x):
    conditional, unconditional = network(x, LEVEL, COND)[:, :4], network(x, LEVEL)[:, :4]
    guided = Guided(network, 4.0, 4)(x, LEVEL, COND)[:, :4]
    assert torch.allclose(guided - conditional, 3 * (conditional - unconditional), atol=1e-5)


def test_the_variance_is_the_conditional_passes(network, x):
    conditional = network(x, LEVEL, COND)
    for channels in ("all", 3):
        assert torch.equal(Guided(network, 4.0, 4, channels)(x, LEVEL, COND)[:, 4:], conditional[:, 4:])


def test_the_published_variant_leaves_the_fourth_channel_unguided(network, x):
    every, three = (Guided(network, 2.0, 4, channels)(x, LEVEL, COND) for channels in ("all", 3))
    assert torch.equal(every[:, :3], three[:, :3])
    assert torch.equal(three[:, 3], network(x, LEVEL, COND)[:, 3])
    assert (every[:, 3] - three[:, 3]).abs().max() > 0.1


def test_an_image_of_no_class_is_not_guided(network, x):
    null = Cond(label=torch.full((3,), 5))
    assert torch.allclose(Guided(network, 4.0, 4)(x, LEVEL, null), network(x, LEVEL), atol=1e-6)


def test_guidance_needs_a_label(network, x):
    for cond in (None, Cond()):
        with pytest.raises(ConfigError, match="give a class for every image"):
            Guided(network, 4.0, 4)(x, LEVEL, cond)


def test_tokens_are_those_of_the_network(network, x):
    guided = Guided(network, 4.0, 4)
    assert guided.encoder_layer == network.encoder_layer
    tokens, expected = (n.encode(x, LEVEL, COND, [2])[2] for n in (guided, network))
    assert torch.equal(tokens, expected)

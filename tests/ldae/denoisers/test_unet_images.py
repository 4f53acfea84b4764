"""U-Nets conditioned on an image, concatenated or encoded (arXiv 2104.07636, 2112.00390)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from unets import VARIANTS, conditions_of, level, network, normal, randomised, trained

from ldae.core.errors import ConfigError
from ldae.core.types import Cond
from ldae.denoisers.guidance import Guided
from ldae.denoisers.vit import ViTDenoiser
from ldae.nn.rrdb import RRDB, RRDBNet
from ldae.nn.unet_blocks import upsample_bicubic


def _keys(x):
    """The cubic convolution kernel, a = -1/2 (Eq. 15 of Keys, 1981)."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_an_image_grows_by_keys_kernel():
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 4, 4] = 1
    weights = torch.tensor([_keys((i + 0.5) / 4 - 0.5 - 4) for i in range(32)])
    assert torch.allclose(upsample_bicubic(impulse, (32, 32))[0, 0], torch.outer(weights, weights), atol=1e-5)
    image = normal(1, 2, 3, 8, 8)
    assert torch.equal(upsample_bicubic(image, (8, 8)), image)
    assert torch.allclose(upsample_bicubic(torch.full((1, 3, 4, 4), 0.3), (16, 8)), torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize("name", ["sr3", "segdiff"])
def test_swapping_images_swaps_answers_and_images_count(name):
    """Same x_t and level, two images, smaller than x_t."""
    net, x = trained(name)[0], normal(1, 1, 3, 8, 8).expand(2, -1, -1, -1)
    cond = conditions_of(2, side=4)
    swapped = replace(cond, image=cond.image.flip(0))
    out = net(x, level(3, 3), cond)
    assert torch.allclose(net(x, level(3, 3), swapped), out.flip(0), atol=1e-5)
    assert (out[0] - out[1]).abs().max() > 1e-2
    assert (net(x, level(3, 3), replace(cond, image=torch.zeros_like(cond.image))) - out).abs().max() > 1e-2


def test_a_concatenated_image_is_seen_at_the_size_of_x_t():
    net, x, cond = trained("sr3")[0], normal(1, 2, 3, 8, 8), conditions_of(2, side=4)
    assert torch.equal(
        net(x, level(3, 3), cond), net(x, level(3, 3), replace(cond, image=upsample_bicubic(cond.image, (8, 8))))
    )


@pytest.mark.parametrize("name", ["sr3", "segdiff"])
@pytest.mark.parametrize("cond", [None, Cond(), Cond(label=torch.tensor([1, 2]))])
def test_a_missing_image_is_refused(name, cond):
    net = network(**VARIANTS[name])
    with pytest.raises(ConfigError, match=r"cond.image=null is what this network is conditioned on"):
        net(normal(1, 2, 3, 8, 8), level(3, 900), cond)
    with pytest.raises(ConfigError, match=r"cond.image=null"):
        net.encode(normal(1, 2, 3, 8, 8), level(3, 900), cond)


def test_an_image_of_other_channels_or_too_large_is_refused():
    net, x = network(**VARIANTS["sr3"]), normal(1, 2, 3, 8, 8)
    with pytest.raises(ConfigError, match="must have 3 channels"):
        net(x, level(3, 900), Cond(image=normal(2, 2, 1, 8, 8)))
    with pytest.raises(ConfigError, match="is larger than the 8 x 8"):
        net(x, level(3, 900), Cond(image=normal(2, 2, 3, 16, 16)))


def test_an_encoder_that_says_nothing_leaves_the_unconditional_network():
    """G = 0: bit for bit."""
    net, cond = trained("segdiff")
    with torch.no_grad():
        net.encoder.last.weight.zero_()
        net.encoder.last.bias.zero_()
    plain = network(sinusoid="improved")
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("encoder.")})
    x = normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900), cond), plain(x, level(3, 900)))


def test_features_are_added_to_the_first_convolution_and_are_the_first_skip():
    """F = 0 leaves the image alone to be read."""
    net, cond = trained("segdiff")
    x, seen = normal(1, 2, 3, 8, 8), []
    net.down[0].layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.up[-1].layers[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -16:]))
    net(x, level(3, 900), cond)
    assert torch.equal(seen[0], net.first(x) + net.encoder(cond.image))
    assert torch.equal(seen[1], seen[0])
    with torch.no_grad():
        net.first.weight.zero_()
    assert torch.equal(net(x, level(3, 3), cond), net(2 * x, level(3, 3), cond))
    assert not torch.allclose(*net(x, level(3, 3), cond), atol=1e-3)


def test_features_worked_out_once_give_the_same_bits():
    """Through guidance too. Then the image is not read again."""
    net, cond = trained("segdiff")
    x = normal(1, 2, 3, 8, 8)
    small = replace(cond, image=normal(2, 2, 3, 4, 4))
    for given, wrapped in ((cond, net), (small, net), (cond, Guided(net, 1.0, 3))):
        ready = wrapped.precompute(given)
        assert ready.features.shape == (2, 16, 8, 8)
        assert wrapped.precompute(ready) is ready
        for t in (3, 900):
            expected = net(x, level(t, t), given)
            assert torch.equal(net(x, level(t, t), ready), expected)
            assert torch.equal(net(x, level(t, t), replace(ready, image=None)), expected)


def test_where_there_is_no_encoder_nothing_is_worked_out():
    vit = ViTDenoiser((3, 8, 8), (3, 8, 8), (4, 4), width=16, encoder_depth=1, decoder_depth=1, heads=2)
    cond = conditions_of(2)
    assert network(**VARIANTS["sr3"]).precompute(cond) is cond
    assert vit.precompute(cond) is cond


def _reference_rrdb(p, x):
    """Three dense blocks of five convolutions, residuals times 0.2 inside and around."""
    out = x
    for block in range(3):
        features, h = [out], None
        for k in range(5):
            name = f"dense.{block}.convs.{k}"
            h = F.conv2d(torch.cat(features, 1), p[f"{name}.weight"], p[f"{name}.bias"], padding=1)
            features.append(torch.where(h > 0, h, 0.2 * h))
        out = out + 0.2 * h
    return x + 0.2 * out


def test_the_image_encoder_is_esrgans():
    block, x = randomised(RRDB(8, 4), by=0.3), normal(1, 2, 8, 6, 6)
    assert torch.allclose(block(x), _reference_rrdb(block.state_dict(), x), atol=1e-5)
    net = randomised(RRDBNet(3, 16, blocks=0, width=8))
    image = normal(2, 1, 3, 6, 6)
    first = net.first(image)
    expected = net.last(F.leaky_relu(net.late(first + net.trunk(first)), 0.2))
    assert torch.allclose(net(image), expected, atol=1e-6)
    dense = sum(9 * (64 + 32 * k) * out + out for k, out in enumerate([32, 32, 32, 32, 64]))
    rest = 9 * 64 * (3 + 64 + 64 + 128) + 3 * 64 + 128
    assert sum(p.numel() for p in RRDBNet(3, 128, blocks=2).parameters()) == 2 * 3 * dense + rest

"""The U-Net of ConvNeXt blocks: its size, its layers, its attention against the explicit matrix."""

from __future__ import annotations

import pytest
import torch
from unets import level, normal

from ldae.app.compose import CONFIGS
from ldae.core.errors import ConfigError
from ldae.denoisers.convnext_unet import HEAD_WIDTH, HEADS, Block, ConvNeXtUNet, LinearAttention

SHAPE = (3, 16, 16)


def network(**settings):
    torch.manual_seed(0)
    return ConvNeXtUNet(SHAPE, SHAPE, **{"channels": 8, "multipliers": (1, 2, 4)} | settings).eval()


def test_the_published_size_has_the_parameters_that_its_config_names():
    with torch.device("meta"):
        count = sum(p.numel() for p in ConvNeXtUNet((3, 128, 128), (3, 128, 128)).parameters())
    assert f"{count:,} parameters" in (CONFIGS / "denoiser" / "unet_convnext_64.yaml").read_text()


def test_every_parameter_is_trained_and_the_step_matters():
    net, x = network(), normal(1, 2, *SHAPE)
    out = net(x, level(3, 40))
    assert out.shape == (2, *SHAPE)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert not torch.allclose(out[0], net(x, level(4, 40))[0], atol=1e-6)
    assert torch.allclose(out[1], net(x, level(4, 40))[1], atol=1e-6)


def test_layers_are_read_without_those_behind_them():
    net, x = network(), normal(1, 2, *SHAPE)
    tokens = net.encode(x, level(3, 40))
    shapes = {k: tuple(v.shape[1:]) for k, v in tokens.items()}
    assert shapes == {1: (256, 8), 2: (64, 16), 3: (16, 32), 4: (16, 32), 5: (64, 16), 6: (256, 8)}
    assert net.encoder_layer == 4
    net.up = None  # not needed for the middle
    assert torch.equal(net.encode(x, level(3, 40), layers=[4])[4], tokens[4])


def test_linear_attention_is_the_product_of_all_pairs():
    torch.manual_seed(0)
    attention, x = LinearAttention(8), normal(2, 2, 8, 4, 4)
    h = attention.norm(x.movedim(1, -1)).movedim(-1, 1)
    q, k, v = (t.reshape(2, HEADS, HEAD_WIDTH, 16) for t in attention.qkv(h).chunk(3, 1))
    weights = torch.einsum("bndi,bndj->bnij", q * HEAD_WIDTH**-0.5, k.softmax(-1))  # (B, heads, pixel, pixel)
    out = torch.einsum("bnij,bnej->bnei", weights, v).reshape(2, -1, 4, 4)
    assert torch.allclose(attention(x), x + attention.proj(out), atol=1e-5)


def test_a_block_without_a_condition_is_a_convnext_block():
    block, x = Block(4, 6, 0), normal(3, 1, 4, 8, 8)
    h = block.depthwise(x)
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = block.skip(x) + block.narrow(torch.nn.functional.gelu(block.wide(h)))
    assert torch.allclose(block(x, None), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 10}, "takes neither labels nor images"),
        ({"cond_channels": 3}, "takes neither labels nor images"),
        ({"channels": 7}, "channels=7 must be even"),
        ({"multipliers": (1, 1, 1, 1, 1, 1)}, "32 must divide"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        network(**settings)

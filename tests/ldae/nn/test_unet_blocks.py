"""Blocks of U-Nets: residual blocks, attention, resampling, skip connections."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from unets import level, network, normal, randomised

from ldae.nn.unet_blocks import AddedNorm, BlockConfig, PixelAttention, ResidualBlock, ScaledNorm


def _group_norm(x, groups, weight, bias):
    B, C, H, W = x.shape
    grouped = x.reshape(B, groups, -1)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
    flat = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(B, C, H, W)
    return flat * weight[:, None, None] + bias[:, None, None]


def _swish(x):
    return x / (1 + torch.exp(-x))


def _reference_residual_block(block, x, c, groups, scale_shift, resampled, divisor):
    """The block written out: one statement for each of its operations."""
    p = {name: value.double() for name, value in block.state_dict().items()}
    h = _swish(_group_norm(x, groups[0], p["norm1.weight"], p["norm1.bias"]))
    h, x = resampled(h), resampled(x)
    h = F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1)
    conditional = (c @ p["norm2.linear.weight"].T + p["norm2.linear.bias"])[:, :, None, None]
    width = h.shape[1]
    if scale_shift:
        h = _group_norm(h, groups[1], p["norm2.norm.weight"], p["norm2.norm.bias"])
        h = h * (1 + conditional[:, :width]) + conditional[:, width:]
    else:
        h = _group_norm(h + conditional, groups[1], p["norm2.norm.weight"], p["norm2.norm.bias"])
    h = F.conv2d(_swish(h), p["gate.weight"], p["gate.bias"], padding=1)
    if "skip.weight" in p:
        x = torch.einsum("oi,bihw->bohw", p["skip.weight"][:, :, 0, 0], x) + p["skip.bias"][:, None, None]
    return (x + h) / divisor


def _halved(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


@pytest.mark.parametrize(
    ("channels", "resampling", "resampled"),
    [
        (32, None, lambda x: x),
        (64, None, lambda x: x),
        (64, torch.nn.AvgPool2d(2), _halved),
        (64, torch.nn.Upsample(scale_factor=2), lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ],
)
@pytest.mark.parametrize(("norm", "divisor"), [(AddedNorm, 1.0), (ScaledNorm, math.sqrt(2))])
def test_a_residual_block_is_the_papers(channels, resampling, resampled, norm, divisor):
    config = BlockConfig(24, norm, dropout=0.3, heads=1, scale=1 / divisor)
    block = randomised(ResidualBlock(channels, 64, config, resampling)).eval()
    x, c = normal(1, 2, channels, 8, 8), normal(2, 2, 24)
    groups = (channels // 4, 16)
    expected = _reference_residual_block(
        block, x.double(), c.double(), groups, norm is ScaledNorm, resampled, divisor
    ).float()
    assert torch.allclose(block(x, c), expected, atol=1e-4)


def test_groups_are_32_wherever_channels_allow():
    net = network(channels=128, multipliers=(1, 2))
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32}
    assert {m.eps for m in norms} == {1e-6}


def test_a_rescaled_sum_keeps_the_variance():
    x, h = normal(1, 4, 8, 32, 32), normal(2, 4, 8, 32, 32)
    config = BlockConfig(8, AddedNorm, 0.0, 1, math.sqrt(0.5))
    assert config.add_residual(x, h).var().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_knows_no_order_of_pixels_and_scales_by_the_width_of_a_head(heads):
    layer = randomised(PixelAttention(16, BlockConfig(8, AddedNorm, 0.0, heads, 1.0)), by=0.5)
    x, order = normal(1, 2, 16, 4, 6), torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    assert torch.allclose(layer(shuffled), layer(x).flatten(2)[:, :, order].reshape(x.shape), atol=1e-5)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
    q, k, v = layer.attention.qkv(tokens).chunk(3, dim=-1)
    mixed = []
    for part in torch.arange(16).chunk(heads):
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(16 / heads), dim=-1)
        mixed.append(weights @ v[..., part])
    expected = x + layer.gate(torch.cat(mixed, -1)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_halving_pads_at_the_right_and_the_bottom_only():
    """A kernel of one tap: its corners read x[2i, 2j] and x[2i + 2, 2j + 2], which is 0 beyond the edge."""
    down, x = network().down[0].resample, normal(1, 1, 16, 8, 8)
    conv = down.layer.conv
    for row, column in ((0, 0), (2, 2), (0, 2)):
        with torch.no_grad():
            conv.weight.zero_()[range(16), range(16), row, column] = 1
        expected = F.pad(x, (0, 2, 0, 2))[:, :, row : row + 8 : 2, column : column + 8 : 2]
        assert torch.equal(down(x, None), expected)


def test_doubling_repeats_pixels_and_convolves():
    up, x = network().up[0].resample, normal(1, 1, 32, 4, 4)
    with torch.no_grad():
        up.layer.conv.weight.zero_()[range(32), range(32), 1, 1] = 1
    assert torch.equal(up(x, None), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_way_up_reads_the_first_convolution_every_layer_and_every_halving():
    net, seen, made = randomised(network(multipliers=(1, 2, 4), blocks=2, attention=(2,))), [], []
    for stage in net.up:
        for layer in stage.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    keep = lambda module, args, out: made.append(out)  # noqa: E731
    net.first.register_forward_hook(keep)
    for stage in net.down:
        for layer in stage.layers:
            layer.register_forward_hook(keep)
        if stage.resample is not None:
            stage.resample.register_forward_hook(keep)
    net(normal(1, 1, 3, 8, 8), level(3))
    widths = [layer.block.conv1.in_channels for stage in net.up for layer in stage.layers]
    assert widths == [64 + 64, 64 + 64, 64 + 32, 64 + 32, 32 + 32, 32 + 16, 32 + 16, 16 + 16, 16 + 16]
    assert len(made) == len(seen) == 9
    for kept, read in zip(reversed(made), seen, strict=True):
        assert torch.equal(read[:, -kept.shape[1] :], kept)

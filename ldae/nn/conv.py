"""Convolutional blocks of autoencoders (arXiv 2012.09841, App.; arXiv 2112.10752, App. E)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

GN_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups, or of fewer equal groups of at least 4 channels."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels, eps=GN_EPS)


class ResBlock(nn.Module):
    """GN, SiLU, conv3, GN, SiLU, conv3, plus the input, through a 1x1 convolution if the number of channels changes."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """Residual single-head self-attention over the pixels of a feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, C, H, W) -> (B, C, H, W)."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b (h w) c", three=3).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)  # (B, HW, C)
        return x + self.proj(rearrange(out, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Downsampling by 2: zero padding at the right and the bottom, then conv3 with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of half the size, (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Upsampling by 2: nearest neighbours, then conv3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of twice the size, (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def conv_encoder(
    channels: int, multipliers: Sequence[int], blocks: int, out: int, side: int, attention: Collection[int] = ()
) -> nn.Sequential:
    """Return an encoder, (B, 3, side, side) -> (B, out, side / f, side / f) with f = 2^(levels - 1).

    Args:
        channels: channels of the first level.
        multipliers: channels of each level divided by `channels`.
        blocks: residual blocks per level.
        out: channels of the output.
        side: side of the images in pixels.
        attention: sides of the feature maps at which attention follows each residual block.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    width = channels
    for i, times in enumerate(multipliers):
        layers += _level(width, channels * times, blocks, side >> i in attention)
        width = channels * times
        if i < len(multipliers) - 1:
            layers.append(Downsample(width))
    return nn.Sequential(*layers, *_middle(width), *_last(width, out))


def conv_decoder(
    channels: int, multipliers: Sequence[int], blocks: int, latent: int, side: int, attention: Collection[int] = ()
) -> nn.Sequential:
    """Return a decoder, (B, latent, side / f, side / f) -> (B, 3, side, side), with one more block per level.

    Args: as conv_encoder, and
        latent: channels of the input.
    """
    width = channels * multipliers[-1]
    layers: list[nn.Module] = [nn.Conv2d(latent, width, 3, padding=1), *_middle(width)]
    for i, times in reversed(list(enumerate(multipliers))):
        layers += _level(width, channels * times, blocks + 1, side >> i in attention)
        width = channels * times
        if i:
            layers.append(Upsample(width))
    return nn.Sequential(*layers, *_last(width, 3))


def _level(width: int, out: int, blocks: int, attends: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for k in range(blocks):
        layers.append(ResBlock(out if k else width, out))
        if attends:
            layers.append(SpatialAttention(out))
    return layers


def _middle(width: int) -> list[nn.Module]:
    return [ResBlock(width, width), SpatialAttention(width), ResBlock(width, width)]


def _last(width: int, out: int) -> list[nn.Module]:
    return [group_norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)]

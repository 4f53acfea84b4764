"""Convolutional blocks of autoencoders (arXiv 2012.09841, App.; arXiv 2112.10752, App. E)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

GN_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, fewer where a group would have less than 4 channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=GN_EPS)


class ResBlock(nn.Module):
    """GN, SiLU, conv3, GN, SiLU, conv3, and the input added; a 1x1 convolution where channels change."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """Single-head self-attention over the pixels of a feature map, added to it."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b (h w) c", three=3).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, HW, C)
        return x + self.proj(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the size: padding at the right and the bottom, then conv3 with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest neighbours, then conv3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

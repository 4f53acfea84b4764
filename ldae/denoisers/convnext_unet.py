"""The U-Net of ConvNeXt blocks of Cold Diffusion (code of arXiv 2208.09392)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Cond, Count, NoiseLevel
from ldae.denoisers.base import Denoiser
from ldae.nn.embeddings import sinusoid_ddpm
from ldae.nn.patchify import to_tokens

HEADS, HEAD_WIDTH = 4, 32  # of linear attention


class ConvNeXtUNet(Denoiser):
    """U-Net of ConvNeXt blocks with linear attention: Cold Diffusion on MNIST, CelebA and AFHQ.

    A level down has two blocks, attention and a strided convolution, the last none; a level up concatenates the map of
    the same size, and has two blocks, attention and a transposed convolution. The map of the first level is not used
    again. The readable layers are the levels down, the middle and the levels up; the middle is the representation.

    Args:
        in_shape: (C, H, W) of x_t.
        out_shape: (C', H, W) of the output.
        channels: of the first level.
        multipliers: of `channels`, one for each level; each level is half the size of the one before.
        classes, cond_channels: 0; the network has no condition but the step.

    Raises:
        ConfigError: the levels do not divide the input, or there is a condition.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        channels: Count = 64,
        multipliers: tuple[Count, ...] = (1, 2, 4, 8),
        classes: int = 0,
        cond_channels: int = 0,
    ):
        super().__init__()
        if classes or cond_channels:
            raise ConfigError("denoiser", "ConvNeXtUNet", "takes neither labels nor images as conditions; use unet_32")
        if channels % 2:
            raise ConfigError("channels", channels, "must be even")
        factor = 2 ** (len(multipliers) - 1)
        if in_shape[1] % factor or in_shape[2] % factor:
            message = f"halve the input {len(multipliers) - 1} times: {factor} must divide its sides"
            raise ConfigError("multipliers", tuple(multipliers), f"{message}, {in_shape[1]} and {in_shape[2]}")
        self.channels, widths = channels, [channels * times for times in multipliers]
        self.time = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels), nn.GELU()
        )
        self.down = nn.ModuleList(
            Stage(before, after, channels, normalised=i > 0)
            for i, (before, after) in enumerate(pairwise([in_shape[0], *widths]))
        )
        self.downsample = nn.ModuleList(nn.Conv2d(width, width, 4, 2, 1) for width in widths[:-1])
        self.middle = nn.ModuleList(
            [
                Block(widths[-1], widths[-1], channels),
                LinearAttention(widths[-1]),
                Block(widths[-1], widths[-1], channels),
            ]
        )
        turned = list(pairwise(widths[::-1]))
        self.up = nn.ModuleList(Stage(2 * before, after, channels) for before, after in turned)
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(after, after, 4, 2, 1) for _, after in turned)
        self.last_block, self.last = Block(channels * multipliers[0], channels, 0), nn.Conv2d(channels, out_shape[0], 1)
        self.encoder_layer = len(widths) + 1
        self.layers = tuple(range(1, 2 * len(widths) + 1))

    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """Predict the target: x_t (B, C, H, W) -> out (B, C', H, W)."""
        h = deque(self._feature_maps(x_t, level), maxlen=1).pop()  # keeps the last map only
        return self.last(self.last_block(h, None))

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the feature maps after each of `layers` as tokens, {layer: (B, N, D)} with N = h w of the layer."""
        requested = self.layers if layers is None else layers
        maps = zip(range(1, max(requested) + 1), self._feature_maps(x_t, level), strict=False)
        return {layer: to_tokens(h) for layer, h in maps if layer in requested}

    def undo_zero_init(self) -> None:
        """Do nothing: no branch is initialised with zeros."""

    def _feature_maps(self, x_t: Tensor, level: NoiseLevel) -> Iterator[Tensor]:
        """Yield the feature map after each layer, (B, D, h, w), from input to output."""
        c = self.time(sinusoid_ddpm(level.t, self.channels))  # (B, channels)
        h, skips = x_t, []
        for i, stage in enumerate(self.down):
            h = stage(h, c)
            yield h
            skips.append(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        first, attention, second = self.middle
        h = second(attention(first(h, c)), c)
        yield h
        for stage, upsample in zip(self.up, self.upsample, strict=True):
            h = upsample(stage(torch.cat([h, skips.pop()], 1), c))
            yield h


class Stage(nn.Module):
    """Two blocks and linear attention at one resolution."""

    def __init__(self, channels: int, out: int, cond_width: int, normalised: bool = True):
        super().__init__()
        self.first, self.second = Block(channels, out, cond_width, normalised), Block(out, out, cond_width)
        self.attention = LinearAttention(out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the stage: x (B, C, H, W), c (B, cond_width) -> (B, C', H, W)."""
        return self.attention(self.second(self.first(x, c), c))


class Block(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with 3 x 3 convolutions: depth-wise 7 x 7, + W c, LN, conv3, GELU, conv3; + x.

    Args:
        channels, out: of input and output; a 1 x 1 convolution adjusts x.
        cond_width: of the condition, after its GELU; 0 for none.
        normalised: with the layer normalisation.
    """

    def __init__(self, channels: int, out: int, cond_width: int, normalised: bool = True):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.shift = nn.Linear(cond_width, channels) if cond_width else None
        self.norm = nn.LayerNorm(channels) if normalised else nn.Identity()
        self.wide, self.narrow = nn.Conv2d(channels, 2 * out, 3, padding=1), nn.Conv2d(2 * out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Apply the block: x (B, C, H, W), c (B, cond_width) -> (B, C', H, W)."""
        h = self.depthwise(x)
        if self.shift is not None:
            h = h + self.shift(c)[:, :, None, None]
        h = self.norm(h.movedim(1, -1)).movedim(-1, 1)  # over channels
        return self.skip(x) + self.narrow(F.gelu(self.wide(h)))


class LinearAttention(nn.Module):
    """Residual attention over pixels with softmax of the keys alone, linear in their number (arXiv 1812.01243)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_WIDTH, 1, bias=False)
        self.proj = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention, (B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        q, k, v = rearrange(self.qkv(h), "b (three n d) h w -> three b n d (h w)", three=3, n=HEADS).unbind(0)
        context = einsum("bndp,bnep->bnde", k.softmax(-1), v)
        out = einsum("bnde,bndp->bnep", context, q * HEAD_WIDTH**-0.5)
        return x + self.proj(rearrange(out, "b n e (h w) -> b (n e) h w", h=x.shape[2]))

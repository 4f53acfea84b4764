"""Blocks of a diffusion U-Net: conditioned residual blocks, attention over pixels, resolution levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.nn.attention import Attention
from ldae.nn.conv import Downsample, Upsample, group_norm


class AddedNorm(nn.Module):
    """GN(h + W c): the condition shifts every channel before the normalisation (App. B, arXiv 2006.11239)."""

    def __init__(self, channels: int, cond_width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(cond_width, channels), group_norm(channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Normalise h (B, C, H, W) with the condition c (B, cond_width); return (B, C, H, W)."""
        return self.norm(h + self.linear(c)[:, :, None, None])


class ScaledNorm(nn.Module):
    """GN(h) (1 + s) + b, [s, b] = W c: scale and shift after the normalisation (App. A, arXiv 2102.09672)."""

    def __init__(self, channels: int, cond_width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(cond_width, 2 * channels), group_norm(channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Normalise h (B, C, H, W) with the condition c (B, cond_width); return (B, C, H, W)."""
        scale, shift = self.linear(c)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        return self.norm(h) * (1 + scale) + shift


@dataclass(frozen=True)
class BlockConfig:
    """Settings that all blocks of a network share.

    Attributes:
        cond_width: width of the condition.
        norm: conditioned normalisation, AddedNorm or ScaledNorm.
        dropout: dropout probability.
        heads: number of attention heads.
        scale: factor of every residual sum; 1/sqrt(2) preserves its variance (Sec. 2.3, arXiv 2104.07636).
    """

    cond_width: int
    norm: type[AddedNorm] | type[ScaledNorm]
    dropout: float
    heads: int
    scale: float

    def add_residual(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the scaled sum of a skip connection and a residual branch."""
        return x + branch if self.scale == 1 else (x + branch) * self.scale


class ResidualBlock(nn.Module):
    """GN, SiLU, [resampling], conv3, conditioned GN, SiLU, dropout, conv3, plus the resampled input.

    Models initialise the last convolution, the gate, to 0. The skip connection has a 1x1 convolution if the number of
    channels changes. With resampling it is BigGAN's block (Fig. 15, arXiv 1809.11096), as in SR3.

    Args:
        channels, out: channels of input and output.
        config: settings of all blocks.
        resampling: module that halves or doubles the resolution, or None.
    """

    def __init__(self, channels: int, out: int, config: BlockConfig, resampling: nn.Module | None = None):
        super().__init__()
        self.config, self.resampling = config, resampling or nn.Identity()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.gate = config.norm(out, config.cond_width), nn.Conv2d(out, out, 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the block to x (B, C, H, W) with the condition c (B, cond_width); return (B, C', H', W')."""
        h = self.conv1(self.resampling(F.silu(self.norm1(x))))
        h = self.gate(self.dropout(F.silu(self.norm2(h, c))))
        return self.config.add_residual(self.skip(self.resampling(x)), h)


class PixelAttention(nn.Module):
    """Residual multi-head self-attention over the pixels of a feature map; models initialise its gate to 0."""

    def __init__(self, channels: int, config: BlockConfig):
        super().__init__()
        self.config, self.norm, self.attention = config, group_norm(channels), Attention(channels, config.heads)

    @property
    def gate(self) -> nn.Linear:
        """Return the output projection of the residual branch."""
        return self.attention.proj

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, C, H, W) -> (B, C, H, W)."""
        tokens = self.attention(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return self.config.add_residual(x, rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))


class Layer(nn.Module):
    """Residual block with optional attention; a U-Net exposes the outputs of its layers as features.

    Args:
        channels, out: channels of input and output.
        attends: whether attention follows the block.
        config: settings of all blocks.
    """

    def __init__(self, channels: int, out: int, attends: bool, config: BlockConfig):
        super().__init__()
        self.block = ResidualBlock(channels, out, config)
        self.attention = PixelAttention(out, config) if attends else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the layer to x (B, C, H, W) with the condition c (B, cond_width); return (B, C', H, W)."""
        return self.attention(self.block(x, c))


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: BlockConfig):
        super().__init__()
        self.before = Layer(channels, channels, True, config)
        self.after = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the block to x (B, C, H, W) with the condition c (B, cond_width); return (B, C, H, W)."""
        return self.after(self.before(x, c), c)


class Unconditioned(nn.Module):
    """Wrapper of a layer without a condition, with the signature of a conditioned one."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the layer to x (B, C, H, W) and ignore c (B, cond_width); return (B, C, H', W')."""
        return self.layer(x)


class Level(nn.Module):
    """Layers of one resolution, and the resampling to the next, None for the last."""

    def __init__(self, layers: Sequence[Layer], resample: nn.Module | None):
        super().__init__()
        self.layers, self.resample = nn.ModuleList(layers), resample


@dataclass(frozen=True)
class Resampling:
    """Factories of the modules between two resolutions.

    Attributes:
        down, up: (channels, config) -> module (x, c) -> x at half or twice the resolution.
    """

    down: Callable[[int, BlockConfig], nn.Module]
    up: Callable[[int, BlockConfig], nn.Module]


# strided and plain convolutions (DDPM); BigGAN's residual blocks, average pooling and nearest neighbours (SR3)
CONV = Resampling(
    lambda channels, config: Unconditioned(Downsample(channels)),
    lambda channels, config: Unconditioned(Upsample(channels)),
)
BLOCK = Resampling(
    lambda channels, config: ResidualBlock(channels, channels, config, nn.AvgPool2d(2)),
    lambda channels, config: ResidualBlock(channels, channels, config, nn.Upsample(scale_factor=2, mode="nearest")),
)


@dataclass(frozen=True)
class StageConfig:
    """Settings of one resolution level.

    Attributes:
        width: number of channels.
        attends: whether attention follows each residual block.
    """

    width: int
    attends: bool


def build_down_path(
    channels: int, stages: Sequence[StageConfig], blocks: int, config: BlockConfig, resampling: Resampling
) -> nn.ModuleList:
    """Return the levels of the down path, highest resolution first.

    Args:
        channels: channels of the input.
        stages: settings of each level.
        blocks: layers per level.
        config: settings of all blocks.
        resampling: factories of the modules between levels.
    """
    levels, width, last = [], channels, len(stages) - 1
    for i, stage in enumerate(stages):
        ins = [width, *[stage.width] * (blocks - 1)]
        layers = [Layer(width, stage.width, stage.attends, config) for width in ins]
        levels.append(Level(layers, resampling.down(stage.width, config) if i < last else None))
        width = stage.width
    return nn.ModuleList(levels)


def build_up_path(
    channels: int, stages: Sequence[StageConfig], blocks: int, config: BlockConfig, resampling: Resampling
) -> nn.ModuleList:
    """Return the levels of the up path, lowest resolution first, with `blocks` + 1 layers each.

    The input of each layer is concatenated with one feature map of the down path, the last first: those after the
    first convolution (`channels`), after every layer and after every downsampling.

    Args: as build_down_path.
    """
    skips = [channels]
    for i, stage in enumerate(stages):
        skips += [stage.width] * (blocks + (i < len(stages) - 1))
    levels, width = [], stages[-1].width
    for i, stage in reversed(list(enumerate(stages))):
        ins = [width, *[stage.width] * blocks]
        layers = [Layer(width + skips.pop(), stage.width, stage.attends, config) for width in ins]
        levels.append(Level(layers, resampling.up(stage.width, config) if i else None))
        width = stage.width
    return nn.ModuleList(levels)


def upsample_bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample an image by bicubic interpolation; return it unchanged if it has the size.

    The kernel is Keys' with a = -1/2, as in image libraries and MATLAB. torch uses it with `antialias`, which smooths
    nothing in upsampling; without it a is -3/4.

    Args:
        image: (B, C, h, w).
        size: (H, W), at least (h, w).

    Returns:
        (B, C, H, W); values may exceed the range of the image slightly.

    Raises:
        ConfigError: the image is larger than `size`.
    """
    if tuple(image.shape[2:]) == tuple(size):
        return image
    if image.shape[2] > size[0] or image.shape[3] > size[1]:
        raise ConfigError("image", tuple(image.shape[2:]), f"is larger than the {size[0]} x {size[1]} it goes with")
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)

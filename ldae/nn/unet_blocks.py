"""What a diffusion U-Net is made of: residual blocks that hear a condition, attention over pixels, levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.nn.attention import Attention
from ldae.nn.conv import Downsample, Upsample, group_norm


class AddedNorm(nn.Module):
    """GN(h + W c): the condition shifts every channel before it is normalised (App. B, arXiv 2006.11239)."""

    def __init__(self, channels: int, cond_width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(cond_width, channels), group_norm(channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, C, H, W), c (B, cond_width) -> (B, C, H, W)."""
        return self.norm(h + self.linear(c)[:, :, None, None])


class ScaledNorm(nn.Module):
    """GN(h) (1 + s) + b with [s, b] = W c: the condition scales and shifts after it (App. A, arXiv 2102.09672)."""

    def __init__(self, channels: int, cond_width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(cond_width, 2 * channels), group_norm(channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, C, H, W), c (B, cond_width) -> (B, C, H, W)."""
        scale, shift = self.linear(c)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        return self.norm(h) * (1 + scale) + shift


@dataclass(frozen=True)
class BlockConfig:
    """What the blocks of one network have in common.

    Attributes:
        cond_width: width of the condition.
        norm: how a residual block hears it, AddedNorm or ScaledNorm.
        dropout: share of a block's numbers that is dropped in training.
        heads: of attention.
        scale: what every residual sum is multiplied by; 1/sqrt(2) keeps its variance (Sec. 2.3, arXiv 2104.07636).
    """

    cond_width: int
    norm: type[AddedNorm] | type[ScaledNorm]
    dropout: float
    heads: int
    scale: float

    def sum(self, x: Tensor, branch: Tensor) -> Tensor:
        """A residual branch, added to what it branched off."""
        return x + branch if self.scale == 1 else (x + branch) * self.scale


class ResidualBlock(nn.Module):
    """GN, SiLU, [resampling], conv3, conditioned GN, SiLU, dropout, conv3; and the input, resampled too, added.

    The last convolution, the gate, starts at 0. A 1x1 convolution stands in the other branch where channels change.
    With a resampling it is BigGAN's block (Fig. 15, arXiv 1809.11096), as SR3 uses it.

    Args:
        channels, out: in and out.
        resampling: halves or doubles the size, or leaves it.
    """

    def __init__(self, channels: int, out: int, config: BlockConfig, resampling: nn.Module | None = None):
        super().__init__()
        self.config, self.resampling = config, resampling or nn.Identity()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.gate = config.norm(out, config.cond_width), nn.Conv2d(out, out, 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, cond_width) -> (B, C', H', W')."""
        h = self.conv1(self.resampling(F.silu(self.norm1(x))))
        h = self.gate(self.dropout(F.silu(self.norm2(h, c))))
        return self.config.sum(self.skip(self.resampling(x)), h)


class PixelAttention(nn.Module):
    """Multi-head self-attention over the pixels of a feature map, added to it; its projection starts at 0."""

    def __init__(self, channels: int, config: BlockConfig):
        super().__init__()
        self.config, self.norm, self.attention = config, group_norm(channels), Attention(channels, config.heads)

    @property
    def gate(self) -> nn.Linear:
        """The layer that closes the branch."""
        return self.attention.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mixed = self.attention(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return self.config.sum(x, rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))


class Layer(nn.Module):
    """A residual block and, where asked for, attention: what can be read of a U-Net.

    Args:
        channels, out: in and out.
        attends: whether attention follows.
    """

    def __init__(self, channels: int, out: int, attends: bool, config: BlockConfig):
        super().__init__()
        self.block = ResidualBlock(channels, out, config)
        self.attention = PixelAttention(out, config) if attends else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, cond_width) -> (B, C', H, W)."""
        return self.attention(self.block(x, c))


class Middle(nn.Module):
    """Residual block, attention, residual block: where the feature map is smallest."""

    def __init__(self, channels: int, config: BlockConfig):
        super().__init__()
        self.before = Layer(channels, channels, True, config)
        self.after = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, cond_width) -> (B, C, H, W)."""
        return self.after(self.before(x, c), c)


class Unconditioned(nn.Module):
    """A layer that hears no condition, in a place where some do."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, cond_width) -> (B, C, H', W')."""
        return self.layer(x)


class Level(nn.Module):
    """The layers of one resolution and the way to the next, None for the last."""

    def __init__(self, layers: Sequence[Layer], way: nn.Module | None):
        super().__init__()
        self.layers, self.way = nn.ModuleList(layers), way


@dataclass(frozen=True)
class Resampling:
    """From one resolution to the next: (channels, form) -> (x, c) -> x at half or twice the size."""

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
    """One level: its channels and whether its blocks are followed by attention."""

    width: int
    attends: bool


def levels_down(
    channels: int, sizes: Sequence[StageConfig], blocks: int, config: BlockConfig, resampling: Resampling
) -> nn.ModuleList:
    """The levels on the way down, largest first, `blocks` layers each; `channels` go in."""
    levels, width, last = [], channels, len(sizes) - 1
    for i, size in enumerate(sizes):
        ins = [width, *[size.width] * (blocks - 1)]
        layers = [Layer(width, size.width, size.attends, config) for width in ins]
        levels.append(Level(layers, resampling.down(size.width, config) if i < last else None))
        width = size.width
    return nn.ModuleList(levels)


def levels_up(
    channels: int, sizes: Sequence[StageConfig], blocks: int, config: BlockConfig, resampling: Resampling
) -> nn.ModuleList:
    """The levels on the way up, smallest first, `blocks` + 1 layers each.

    Every layer reads, beside what comes from below, one feature map of the way down, the last first: those after
    the first convolution (`channels`), after every layer and after every halving.
    """
    kept = [channels]
    for i, size in enumerate(sizes):
        kept += [size.width] * (blocks + (i < len(sizes) - 1))
    levels, width = [], sizes[-1].width
    for i, size in reversed(list(enumerate(sizes))):
        ins = [width, *[size.width] * blocks]
        layers = [Layer(width + kept.pop(), size.width, size.attends, config) for width in ins]
        levels.append(Level(layers, resampling.up(size.width, config) if i else None))
        width = size.width
    return nn.ModuleList(levels)

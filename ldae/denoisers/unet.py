"""The U-Net of DDPM and of what was built on it: improved DDPM, SR3, SegDiff. One network with options."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import ALLOW_EMPTY, Cond, Count, Fraction, NoiseLevel
from ldae.denoisers.base import Denoiser
from ldae.denoisers.conditioning import READINGS, WAVES, LabelEmbedding, LevelEmbedding
from ldae.diffusion.schedules import NoiseSchedule
from ldae.nn.attention import Attention
from ldae.nn.conv import group_norm
from ldae.nn.patchify import to_tokens
from ldae.nn.rrdb import RRDBNet
from ldae.nn.unet_blocks import (
    BLOCK,
    CONV,
    AddedNorm,
    BlockConfig,
    Level,
    MiddleBlock,
    PixelAttention,
    ResidualBlock,
    ScaledNorm,
    StageConfig,
    build_down_path,
    build_up_path,
    upsample_bicubic,
)

RESAMPLING = {"conv": CONV, "block": BLOCK}
NORMS: Mapping[bool, type[AddedNorm] | type[ScaledNorm]] = {False: AddedNorm, True: ScaledNorm}


class UNet(Denoiser):
    """Feature maps at halving, then doubling resolutions; each on the way up reads one from the way down.

    App. B, arXiv 2006.11239; the output is 0 and every residual branch closed at the start. Layers that can be read
    are, from input to output, each residual block with its attention, the middle counting as one: `blocks` of each
    level down, the middle, `blocks` + 1 of each level up. The middle is the representation.

    What `Cond.image` is for: with an `encoder` (SegDiff) its features are added to those of x_t after the first
    convolution, before all else; without one it is made as large as x_t and concatenated to it (SR3).

    Args:
        in_shape: (C, H, W) of x_t.
        out_shape: (C', H, W) of the output.
        schedule: whose T the level `scaled` refers to.
        channels: of the first level; the condition is four times as wide.
        multipliers: of `channels`, one for each level; each level is half the size of the one before.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: sides of the feature maps (the shorter, of two) whose blocks are each followed by attention; the
            middle always has it.
        heads: of attention.
        dropout: share of each residual block's numbers that is dropped in training.
        level: what it is told of the noise: the `index` i of the step, i 1000 / T (`scaled`), or `gamma` alone.
        sinusoid: how that number becomes waves: as in DDPM's code or as in improved DDPM's.
        scale_shift: whether the condition scales and shifts after normalisation; if not, it shifts before.
        resample: by convolutions, or by residual blocks as in BigGAN.
        rescale: whether every residual sum is divided by sqrt(2).
        encoder: of the conditioning image, to `channels` channels; None concatenates the image to x_t.
        cond_channels: of `Cond.image`; 0 if there is none.
        classes: K that can be told; 0 for none.

    Raises:
        ConfigError: sizes do not fit together, or there is an encoder and no image for it.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        schedule: NoiseSchedule,
        channels: Count,
        multipliers: tuple[Count, ...],
        blocks: Count,
        attention: Annotated[tuple[Count, ...], ALLOW_EMPTY] = (),
        heads: Count = 1,
        dropout: Fraction = 0.0,
        level: Literal["index", "scaled", "gamma"] = "index",
        sinusoid: Literal["ddpm", "improved"] = "ddpm",
        scale_shift: bool = False,
        resample: Literal["conv", "block"] = "conv",
        rescale: bool = False,
        encoder: RRDBNet | None = None,
        cond_channels: int = 0,
        classes: int = 0,
    ):
        super().__init__()
        self.in_shape, self.cond_channels, self.multipliers = in_shape, cond_channels, tuple(multipliers)
        sizes = _stages(in_shape, out_shape, channels, multipliers, attention, heads)
        config = BlockConfig(4 * channels, NORMS[scale_shift], dropout, heads, math.sqrt(0.5) if rescale else 1.0)
        reading = lambda noise: READINGS[level](noise, schedule.T)  # noqa: E731
        self.level = LevelEmbedding(config.cond_width, channels, 2, WAVES[sinusoid], reading)
        self.labels = LabelEmbedding(classes, config.cond_width) if classes else None
        self.encoder = encoder
        self.first = nn.Conv2d(in_shape[0] + (0 if self.encoder else cond_channels), channels, 3, padding=1)
        self.down = build_down_path(channels, sizes, blocks, config, RESAMPLING[resample])
        self.middle = MiddleBlock(sizes[-1].width, config)
        self.up = build_up_path(channels, sizes, blocks, config, RESAMPLING[resample])
        self.norm, self.last = group_norm(sizes[0].width), nn.Conv2d(sizes[0].width, out_shape[0], 3, padding=1)
        self.encoder_layer = len(sizes) * blocks + 1
        self.layers = tuple(range(1, self.encoder_layer + len(sizes) * (blocks + 1) + 1))
        self.apply(_initialise)
        for layer in [self.last, *self._gates()]:
            nn.init.zeros_(layer.weight)

    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """x_t (B, C, H, W) -> out (B, C', H, W).

        Raises:
            ConfigError: the levels do not divide x_t, or an image that it needs is not there or not of the right size.
        """
        h = deque(self._maps(x_t, level, cond), maxlen=1).pop()  # the last; the others are let go
        return self.last(F.silu(self.norm(h)))

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Feature maps after each of `layers` as tokens, row by row: N = h w and D are those of the layer."""
        requested = self.layers if layers is None else layers
        maps = zip(range(1, max(requested) + 1), self._maps(x_t, level, cond), strict=False)
        return {layer: to_tokens(h) for layer, h in maps if layer in requested}

    def prepared(self, cond: Cond) -> Cond:
        """`cond` with the encoder's features of its image, for x_t of the network's own size."""
        if self.encoder is None or cond.features is not None:
            return cond
        return replace(cond, features=self._features(cond, self.in_shape[1:]))

    @torch.no_grad()
    def undo_zero_init(self) -> None:
        """The last layer of every residual branch starts as others do, so that random weights show; always the same."""
        generator = torch.Generator().manual_seed(0)
        for layer in self._gates():
            start = nn.init.xavier_uniform_(torch.empty(layer.weight.shape), generator=generator)
            layer.weight.copy_(start)

    def _maps(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None) -> Iterator[Tensor]:
        """The feature map after each layer, (B, D, h, w), from input to output."""
        h, c = self._entered(x_t, cond or Cond()), self._condition(level, cond or Cond())
        skips = [h]
        for stage in self.down:
            assert isinstance(stage, Level)
            for layer in stage.layers:
                h = layer(h, c)
                yield h
                skips.append(h)
            if stage.resample is not None:
                h = stage.resample(h, c)
                skips.append(h)
        h = self.middle(h, c)
        yield h
        for stage in self.up:
            assert isinstance(stage, Level)
            for layer in stage.layers:
                h = layer(torch.cat([h, skips.pop()], dim=1), c)
                yield h
            if stage.resample is not None:
                h = stage.resample(h, c)

    def _entered(self, x_t: Tensor, cond: Cond) -> Tensor:
        """x_t and what is seen of the conditioning image as one feature map: (B, channels, H, W)."""
        size = (x_t.shape[2], x_t.shape[3])
        _check_divides(self.multipliers, size)
        if self.encoder is not None:
            features = self._features(cond, size) if cond.features is None else cond.features
            return self.first(x_t) + features
        if self.cond_channels:
            x_t = torch.cat([x_t, self._image(cond, size)], dim=1)
        return self.first(x_t)

    def _features(self, cond: Cond, size: tuple[int, int]) -> Tensor:
        assert self.encoder is not None
        return self.encoder(self._image(cond, size))

    def _image(self, cond: Cond, size: tuple[int, int]) -> Tensor:
        """The conditioning image at `size`."""
        if cond.image is None:
            raise ConfigError("cond.image", None, "is what this network is conditioned on; use a task that gives one")
        if cond.image.shape[1] != self.cond_channels:
            raise ConfigError("cond.image", tuple(cond.image.shape), f"must have {self.cond_channels} channels")
        return upsample_bicubic(cond.image, size)

    def _condition(self, level: NoiseLevel, cond: Cond) -> Tensor:
        """What every residual block hears, (B, 4 channels), its SiLU taken. No class told is a class of its own."""
        c = self.level(level)
        return F.silu(c if self.labels is None else c + self.labels(cond.label, like=c))

    def _gates(self) -> list[nn.Conv2d | nn.Linear]:
        """The layers that close the residual branches, from input to output."""
        return [m.gate for m in self.modules() if isinstance(m, (ResidualBlock, PixelAttention))]


def _stages(
    in_shape: tuple[int, int, int],
    out_shape: tuple[int, int, int],
    channels: int,
    multipliers: Sequence[int],
    attention: Sequence[int],
    heads: int,
) -> list[StageConfig]:
    """The sizes of all levels, checked."""
    if channels % 4:
        raise ConfigError("channels", channels, "must be a multiple of 4")
    if not multipliers:
        raise ConfigError("multipliers", multipliers, "must have a number for each level, one at least")
    if in_shape[1:] != out_shape[1:]:
        raise ConfigError("out_shape", out_shape, f"must be as large as the input, {in_shape[1]} x {in_shape[2]}")
    _check_divides(multipliers, in_shape[1:])
    sides = [min(in_shape[1:]) >> i for i in range(len(multipliers))]
    for side in set(attention) - set(sides):
        raise ConfigError("attention", side, f"is the side of no feature map; there are {', '.join(map(str, sides))}")
    sizes = [StageConfig(channels * times, side in attention) for times, side in zip(multipliers, sides, strict=True)]
    for size in [*(size for size in sizes if size.attends), sizes[-1]]:
        if size.width % heads:
            raise ConfigError("heads", heads, f"must divide the {size.width} channels that attention works on")
    return sizes


def _check_divides(multipliers: Sequence[int], size: tuple[int, int]) -> None:
    factor = 2 ** (len(multipliers) - 1)
    if size[0] % factor or size[1] % factor:
        raise ConfigError(
            "multipliers",
            tuple(multipliers),
            f"halve the input {len(multipliers) - 1} times: {factor} must divide "
            f"its sides, {size[0]} and {size[1]}; use fewer levels or another size",
        )


def _initialise(module: nn.Module) -> None:
    """Variance scaling by the mean of both fans, uniform, biases 0 (DDPM's code): Xavier's."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):  # queries, keys and values are layers of their own
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
    elif isinstance(module, RRDBNet):  # after its convolutions: children come first
        module.initialise()

"""The U-Net of DDPM, improved DDPM, SR3 and SegDiff."""

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
from ldae.denoisers.conditioning import LEVEL_SCALARS, WAVES, LabelEmbedding, LevelEmbedding
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
    """U-Net with attention and skip connections (App. B, arXiv 2006.11239).

    The last layer and every residual branch are zero-initialised. The readable layers are, from input to output, the
    residual blocks with their attention: `blocks` of each level down, the middle as one, `blocks` + 1 of each level up.
    The middle is the representation.

    A conditioning image (`Cond.image`) is encoded by `encoder` and added to the features of x_t after the first
    convolution (SegDiff); without an encoder it is resized to x_t and concatenated to it (SR3).

    Args:
        in_shape: (C, H, W) of x_t.
        out_shape: (C', H, W) of the output.
        schedule: gives T of level `scaled`.
        channels: of the first level; the condition has four times as many.
        multipliers: of `channels`, one for each level; each level is half the size of the one before.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: sides of the feature maps (the shorter, of two) whose blocks are each followed by attention; the
            middle always has it.
        heads: of attention.
        dropout: probability of dropout in residual blocks.
        level: scalar of the noise level: the `index` i of the step, i 1000 / T (`scaled`), or `gamma`.
        sinusoid: embedding of that scalar, of DDPM's code or of improved DDPM's.
        scale_shift: the condition scales and shifts after normalisation; if false, it is added before.
        resample: by convolutions, or by residual blocks as in BigGAN.
        rescale: divide every residual sum by sqrt(2).
        encoder: of the conditioning image, to `channels` channels; None concatenates the image to x_t.
        cond_channels: of `Cond.image`; 0 if there is none.
        classes: K; 0 for an unconditional network.

    Raises:
        ConfigError: sizes do not fit together.
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
        scalar = lambda noise: LEVEL_SCALARS[level](noise, schedule.T)  # noqa: E731
        self.level = LevelEmbedding(config.cond_width, channels, 2, WAVES[sinusoid], scalar)
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
        """Predict the target: x_t (B, C, H, W) -> out (B, C', H, W).

        Raises:
            ConfigError: the levels do not divide x_t, or the conditioning image is missing or of another size.
        """
        h = deque(self._feature_maps(x_t, level, cond), maxlen=1).pop()  # keeps the last map only
        return self.last(F.silu(self.norm(h)))

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the feature maps after each of `layers` as tokens, {layer: (B, N, D)} with N = h w of the layer."""
        requested = self.layers if layers is None else layers
        maps = zip(range(1, max(requested) + 1), self._feature_maps(x_t, level, cond), strict=False)
        return {layer: to_tokens(h) for layer, h in maps if layer in requested}

    def precompute(self, cond: Cond) -> Cond:
        """Return `cond` with the encoder's features of its image, for x_t of size `in_shape`."""
        if self.encoder is None or cond.features is not None:
            return cond
        return replace(cond, features=self._features(cond, self.in_shape[1:]))

    @torch.no_grad()
    def undo_zero_init(self) -> None:
        """Initialise the last layer of every residual branch as the other layers, from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        for layer in self._gates():
            weight = nn.init.xavier_uniform_(torch.empty(layer.weight.shape), generator=generator)
            layer.weight.copy_(weight)

    def _feature_maps(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None) -> Iterator[Tensor]:
        """Yield the feature map after each layer, (B, D, h, w), from input to output."""
        h, c = self._embed_input(x_t, cond or Cond()), self._condition(level, cond or Cond())
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

    def _embed_input(self, x_t: Tensor, cond: Cond) -> Tensor:
        """Return the first feature map, of x_t and the conditioning image: (B, channels, H, W)."""
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
        """Return the conditioning image resized to `size`."""
        if cond.image is None:
            raise ConfigError("cond.image", None, "is what this network is conditioned on; use a task that gives one")
        if cond.image.shape[1] != self.cond_channels:
            raise ConfigError("cond.image", tuple(cond.image.shape), f"must have {self.cond_channels} channels")
        return upsample_bicubic(cond.image, size)

    def _condition(self, level: NoiseLevel, cond: Cond) -> Tensor:
        """Return the condition of the blocks after its SiLU, (B, 4 channels); without a label, of the null class."""
        c = self.level(level)
        return F.silu(c if self.labels is None else c + self.labels(cond.label, like=c))

    def _gates(self) -> list[nn.Conv2d | nn.Linear]:
        """Return the zero-initialised layers of the residual branches, from input to output."""
        return [m.gate for m in self.modules() if isinstance(m, (ResidualBlock, PixelAttention))]


def _stages(
    in_shape: tuple[int, int, int],
    out_shape: tuple[int, int, int],
    channels: int,
    multipliers: Sequence[int],
    attention: Sequence[int],
    heads: int,
) -> list[StageConfig]:
    """Return the sizes of all levels after checking them."""
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
    """Initialise with Xavier-uniform weights and biases 0 (DDPM's code)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):  # queries, keys and values have separate fans
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
    elif isinstance(module, RRDBNet):  # after its convolutions: children come first
        module.initialise()

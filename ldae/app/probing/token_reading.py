"""Read patch tokens and attention of an encoder, layer by layer, in one pass."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from ldae.export.encoder import Encoder
from ldae.export.timm_encoder import TimmEncoder
from ldae.nn.attention import recorded_attention
from linear_probe.token_maps import AttentionSummary, summarise_attention


@dataclass(frozen=True)
class LayerTokens:
    """Patch tokens and attention of one layer.

    Attributes:
        tokens: (B, N, D) of N = h x w patches, without class and register tokens.
        grid: (h, w).
        attention: None where the layer has none, or one whose weights depend on more than queries and keys.
    """

    tokens: Tensor
    grid: tuple[int, int]
    attention: AttentionSummary | None


def read_layers(
    encoder: Encoder | TimmEncoder,
    images: Tensor,
    layers: Collection[int],
    query: tuple[float, float] = (0.5, 0.5),
    index: Tensor | None = None,
) -> dict[int, LayerTokens]:
    """Return the patch tokens and the attention after each of some layers.

    Args:
        encoder: of a run or of timm.
        images: (B, 3, H, W) in [0, 1].
        layers: layers to read, from 1.
        query: place of the patch whose attention is `of_query`, as fractions of width and height.
        index: image numbers that seed the noise of a noised input (see `Encoder.tokens`).

    Returns:
        {layer: its tokens and attention}, on the encoder's device.
    """
    prefix = encoder.prefix if isinstance(encoder, TimmEncoder) else encoder.network.prefix
    modules = {layer: encoder.attention[layer] for layer in layers if layer in encoder.attention}

    def summarise(weights: Tensor) -> AttentionSummary:
        grid = square(weights.shape[-1] - prefix)
        x, y = (min(int(place * side), side - 1) for place, side in zip(query, grid[::-1], strict=True))
        return summarise_attention(weights, grid, y * grid[1] + x, prefix)

    with recorded_attention(modules, summarise) as attention:
        if isinstance(encoder, TimmEncoder):
            patches = {layer: x[:, prefix:] for layer, x in encoder.tokens(images, layers).items()}
        else:
            patches = encoder.tokens(images, layers, index)
    return {layer: LayerTokens(x, square(x.shape[1]), attention.get(layer)) for layer, x in patches.items()}


def square(count: int) -> tuple[int, int]:
    """Return the grid of a number of patches of a square image."""
    side = math.isqrt(count)
    return side, count // side

"""Conversions between images, grids of patches and sequences of tokens."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """Split images into p x p patches, flattened as (row, column, channel): (B, C, H, W) -> (B, p*p*C, H/p, W/p).

    Raises:
        einops.EinopsError: p does not divide H or W.
    """
    return rearrange(x, "b c (h p) (w q) -> b (p q c) h w", p=p, q=p)


def unpatchify(patches: Tensor, p: int) -> Tensor:
    """Invert patchify: (B, p*p*C, h, w) -> (B, C, h*p, w*p)."""
    return rearrange(patches, "b (p q c) h w -> b c (h p) (w q)", p=p, q=p)


def to_tokens(grid: Tensor) -> Tensor:
    """Flatten a grid to tokens, row by row: (B, d, h, w) -> (B, h*w, d)."""
    return rearrange(grid, "b d h w -> b (h w) d")


def to_grid(tokens: Tensor, h: int) -> Tensor:
    """Reshape tokens to a grid of h rows: (B, h*w, d) -> (B, d, h, w)."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=h)

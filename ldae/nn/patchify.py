"""Images cut into non-overlapping patches, and back."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, p*p*C, H/p, W/p); a patch is flattened as (row, column, channel).

    Raises:
        einops.EinopsError: p divides H or W with a remainder.
    """
    return rearrange(x, "b c (h p) (w q) -> b (p q c) h w", p=p, q=p)


def unpatchify(patches: Tensor, p: int) -> Tensor:
    """The inverse of patchify: (B, p*p*C, h, w) -> (B, C, h*p, w*p)."""
    return rearrange(patches, "b (p q c) h w -> b c (h p) (w q)", p=p, q=p)


def to_tokens(grid: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h*w, d), row by row."""
    return rearrange(grid, "b d h w -> b (h w) d")


def to_grid(tokens: Tensor, h: int) -> Tensor:
    """(B, h*w, d) -> (B, d, h, w)."""
    return rearrange(tokens, "b (h w) d -> b d h w", h=h)

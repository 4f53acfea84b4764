"""Conversions between images, grids of patches and sequences of tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

NORM_EPS = 1e-6  # added to a patch's variance: a constant patch becomes 0


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


def moments(patches: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch over the axis of its numbers, which stays with length 1."""
    variance, mean = torch.var_mean(patches, dim=dim, correction=1, keepdim=True)
    return mean, (variance + NORM_EPS).sqrt()


def normalised(patches: Tensor, dim: int) -> Tensor:
    """Standardise each patch by its mean and deviation (MAE's target, Sec. 3 of arXiv 2111.06377).

    Args:
        patches: numbers of a patch along `dim`.
    """
    mean, deviation = moments(patches, dim)
    return (patches - mean) / deviation

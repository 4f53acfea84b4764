"""Fixed sinusoidal embeddings of positions and timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sincos_positions(width: int, h: int, w: int) -> Tensor:
    """Return 2-D position embeddings as in MAE and DiT: the first half of the channels encodes the column.

    Each half is [sin(p omega_k), cos(p omega_k)], omega_k = 10000^(-k / (width / 4)).

    Args:
        width: D, divisible by 4.
        h, w: rows and columns of the grid.

    Returns:
        (h*w, D) float32, tokens row by row.
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    halves = [axis.reshape(-1, 1) * omega for axis in (column, row)]
    return torch.cat([wave for angle in halves for wave in (angle.sin(), angle.cos())], dim=1).float()  # (N, D)


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Return [cos(t omega_k), sin(t omega_k)], omega_k = exp(-ln(10^4) k / (width / 2)) (DiT, arXiv 2212.09748).

    Args:
        t: (B,) timesteps, any number type.
        width: number of channels, even.

    Returns:
        (B, width) float32.
    """
    half = width // 2
    omega = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * omega
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, width)


def sinusoid_ddpm(t: Tensor, width: int) -> Tensor:
    """Return [sin(t omega_k), cos(t omega_k)], omega_k = exp(-ln(10^4) k / (width / 2 - 1)) (DDPM, arXiv 2006.11239).

    The lowest frequency is exactly 1e-4; that of `sinusoid` is higher.

    Args:
        t: (B,) timesteps, any number type.
        width: number of channels, even, 4 or more.

    Returns:
        (B, width) float32.
    """
    half = width // 2
    omega = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)  # (B, width)

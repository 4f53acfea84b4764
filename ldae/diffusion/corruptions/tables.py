"""Precomputed tables of corruptions, one row per step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Table:
    """Table with a row for every step, (T, ...) float32, cached on each device.

    Args:
        rows: (T, ...) float64.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows.float()
        self.copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return all rows on a device, (T, ...)."""
        if device not in self.copies:
            self.copies[device] = self.rows.to(device)
        return self.copies[device]

    def __getitem__(self, t: Tensor) -> Tensor:
        """Return the rows of steps `t`, (B,) int64, on its device: (B, ...)."""
        return self.on(t.device)[t]


class Separable:
    """Separable linear map x -> A_t x A_t^T of every channel, A_t the product of the matrices of steps 0..t.

    Args:
        steps: one (n, n) float64 matrix for each step, the first applied first.
    """

    def __init__(self, steps: Iterable[Tensor]):
        product: list[Tensor] = []
        for step in steps:
            product.append(step @ product[-1] if product else step)
        self.table = Table(torch.stack(product))  # (T, n, n)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Apply A_t to images (B, C, n, n), with a step for each, (B,) int64."""
        a = self.table[t][:, None]  # (B, 1, n, n)
        return a @ x @ a.mT


def quantize_8_bit(x: Tensor) -> Tensor:
    """Quantise numbers of [-1, 1] to 256 levels, truncating.

    It removes the traces of an erased image below 8 bits (`discrete` in the code of arXiv 2208.09392).
    """
    return ((x + 1) * 0.5 * 255).trunc() / 255 * 2 - 1

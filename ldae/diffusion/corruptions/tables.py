"""What corruptions work out beforehand, for every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Table:
    """Numbers of every step, (T, ...); float32, a copy on each device that asks.

    Args:
        rows: (T, ...) float64.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows.float()
        self.copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """All rows, (T, ...)."""
        if device not in self.copies:
            self.copies[device] = self.rows.to(device)
        return self.copies[device]

    def __getitem__(self, t: Tensor) -> Tensor:
        """The rows of steps `t`, (B,) int64: (B, ...), on its device."""
        return self.on(t.device)[t]


class Separable:
    """x -> A_t x A_t^T for every channel, with A_t the product of the matrices of the steps up to t.

    Args:
        steps: one (n, n) float64 matrix for each step, the first applied first.
    """

    def __init__(self, steps: Iterable[Tensor]):
        product: list[Tensor] = []
        for step in steps:
            product.append(step @ product[-1] if product else step)
        self.table = Table(torch.stack(product))  # (T, n, n)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C, n, n) and a step for each, (B,) int64 -> (B, C, n, n)."""
        a = self.table[t][:, None]  # (B, 1, n, n)
        return a @ x @ a.mT


def in_8_bits(x: Tensor) -> Tensor:
    """Numbers of [-1, 1] on the 256 levels of an image file, cut off rather than rounded.

    So that what is kept of a nearly erased image below 8 bits does not tell it (the published code's `discrete`,
    arXiv 2208.09392).
    """
    return ((x + 1) * 0.5 * 255).trunc() / 255 * 2 - 1

"""Pool the tokens of layers to one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


@dataclass(frozen=True)
class Pooling:
    """Concatenation of class tokens and of means over patch tokens, of the last layers up to the one read.

    Attributes:
        cls: number of layers whose class token is taken.
        mean: number of layers whose patch tokens are averaged.
        grid: cells a side; the patch tokens of each of the grid^2 cells of the image are averaged by themselves.
    """

    cls: int = 0
    mean: int = 0
    grid: int = 0

    def layers(self, layer: int) -> range:
        """Return the layers needed to read `layer`; those below 1 do not exist."""
        return range(layer - max(self.cls, self.mean, 1) + 1, layer + 1)

    def __call__(self, tokens: Mapping[int, Tensor], layer: int, prefix: int) -> Tensor:
        """Return the pooled features, (B, (cls + mean + grid^2) D).

        Args:
            tokens: {layer: (B, prefix + N, D)}, class and register tokens first.
            layer: layer to read, >= 1.
            prefix: number of tokens in front of the patch tokens.

        Raises:
            ValueError: the patches are no square of at least grid x grid.
        """
        classes = [tokens[i][:, 0] for i in range(layer - self.cls + 1, layer + 1)]
        means = [tokens[i][:, prefix:].mean(1) for i in range(layer - self.mean + 1, layer + 1)]
        cells = [_cells(tokens[layer][:, prefix:], self.grid)] if self.grid else []
        return torch.cat([*classes, *means, *cells], dim=1)


def _cells(patches: Tensor, grid: int) -> Tensor:
    """Average patch tokens (B, N, D) within each cell, (B, grid^2 D), row by row."""
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1] or side < grid:
        raise ValueError(f"{patches.shape[1]} patches are no square of at least {grid} x {grid}")
    image = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, D, side, side)
    return adaptive_avg_pool2d(image, grid).permute(0, 2, 3, 1).flatten(1)


# DINOv2 (arXiv 2304.07193, App. B.3) chooses among cls, cls+mean, cls4 and cls4+mean of the last layer
POOLINGS: Mapping[str, Pooling] = {
    "mean": Pooling(mean=1),
    "cls": Pooling(cls=1),
    "cls+mean": Pooling(cls=1, mean=1),
    "mean4": Pooling(mean=4),
    "cls4": Pooling(cls=4),
    "cls4+mean": Pooling(cls=4, mean=1),
    "grid2": Pooling(grid=2),
    "grid4": Pooling(grid=4),
}

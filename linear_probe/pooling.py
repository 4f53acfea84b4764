"""Pool the tokens of layers to one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """Concatenation of class tokens and of means over patch tokens, of the last layers up to the one read.

    Attributes:
        cls: number of layers whose class token is taken.
        mean: number of layers whose patch tokens are averaged.
    """

    cls: int = 0
    mean: int = 0

    def layers(self, layer: int) -> range:
        """Return the layers needed to read `layer`; those below 1 do not exist."""
        return range(layer - max(self.cls, self.mean) + 1, layer + 1)

    def __call__(self, tokens: Mapping[int, Tensor], layer: int, prefix: int) -> Tensor:
        """Return the pooled features, (B, (cls + mean) D).

        Args:
            tokens: {layer: (B, prefix + N, D)}, class and register tokens first.
            layer: layer to read, >= 1.
            prefix: number of tokens in front of the patch tokens.
        """
        classes = [tokens[i][:, 0] for i in range(layer - self.cls + 1, layer + 1)]
        means = [tokens[i][:, prefix:].mean(1) for i in range(layer - self.mean + 1, layer + 1)]
        return torch.cat([*classes, *means], dim=1)


# DINOv2 (arXiv 2304.07193, App. B.3) chooses among cls, cls+mean, cls4 and cls4+mean of the last layer
POOLINGS: Mapping[str, Pooling] = {
    "mean": Pooling(mean=1),
    "cls": Pooling(cls=1),
    "cls+mean": Pooling(cls=1, mean=1),
    "mean4": Pooling(mean=4),
    "cls4": Pooling(cls=4),
    "cls4+mean": Pooling(cls=4, mean=1),
}

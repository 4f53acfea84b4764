"""Poolings: from tokens to one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """Class tokens of some layers, then means over patches of some layers, one after the other.

    Attributes:
        cls, mean: of how many layers, the last of which is the one that is read.
    """

    cls: int = 0
    mean: int = 0

    def layers(self, layer: int) -> range:
        """Layers whose tokens it takes where `layer` is read; those below 1 do not exist."""
        return range(layer - max(self.cls, self.mean) + 1, layer + 1)

    def __call__(self, tokens: Mapping[int, Tensor], layer: int, prefix: int) -> Tensor:
        """{layer: (B, prefix + N, D)} -> (B, (cls + mean) D).

        Args:
            tokens: class and register tokens, then patches.
            layer: which is read.
            prefix: how many tokens stand before the patches.
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

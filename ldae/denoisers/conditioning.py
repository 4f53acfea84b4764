"""From a noise level and a class to the vector that steers a network's LayerNorms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.nn.embeddings import sinusoid
from ldae.types import NoiseLevel

START = 0.02  # standard deviation of DiT's conditioning weights at the start


class LevelEmbedding(nn.Module):
    """Sinusoid of t, one Linear or two; a SiLU and one more Linear are each block's adaLN.

    l-DAE: one Linear, a quarter as wide as DiT's, D / 4 (App. A, arXiv 2401.14404): 1.5 D^2 + 6 D parameters
    in each block's adaLN. The paper does not say whether it is one for all blocks; here it is.
    DiT: Linear, SiLU, Linear, both to D (arXiv 2212.09748).

    Args:
        width: of the returned vector.
        frequencies: width of the sinusoid.
        layers: how many Linears.
    """

    def __init__(self, width: int, frequencies: int = 256, layers: Literal[1, 2] = 1):
        super().__init__()
        self.frequencies = frequencies
        self.linear = nn.Linear(frequencies, width)
        self.second = nn.Linear(width, width) if layers == 2 else None

    def forward(self, level: NoiseLevel) -> Tensor:
        """(B,) levels -> (B, width)."""
        c = self.linear(sinusoid(level.t, self.frequencies))
        return c if self.second is None else self.second(F.silu(c))

    def initialise(self) -> None:
        """DiT's start, where the layers are DiT's: weights N(0, 0.02^2)."""
        if self.second is not None:
            nn.init.normal_(self.linear.weight, std=START)
            nn.init.normal_(self.second.weight, std=START)


class LabelEmbedding(nn.Module):
    """A table of K + 1 vectors, one for each class and one, the last, for no class.

    It drops no labels: who trains decides that, with the step's own random numbers (`Task.dropped`).

    Args:
        classes: K.
        width: of a vector.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.null = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=START)

    def forward(self, label: Tensor | None, like: Tensor) -> Tensor:
        """(B,) int64 in {0, ..., K}, or None for no class throughout -> (B, width) for `like`, (B, ...)."""
        if label is None:
            label = torch.full((len(like),), self.null, device=like.device)
        return self.table(label)  # (B, width)

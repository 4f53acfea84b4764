"""From a noise level and a class to the vector that steers a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.types import NoiseLevel
from ldae.nn.embeddings import sinusoid, sinusoid_ddpm

START = 0.02  # standard deviation of DiT's conditioning weights at the start
GAMMA_SCALE = 5000.0  # of a level that is told as a number in [0, 1]


def by_index(level: NoiseLevel, T: int) -> Tensor:
    """The step i in {0, ..., T-1}, (B,)."""
    return level.t


def by_scaled_index(level: NoiseLevel, T: int) -> Tensor:
    """i 1000 / T, (B,): the range of DDPM's whatever T (`rescale_timesteps` in improved DDPM's code)."""
    return level.t * (1000 / T)


def by_gamma(level: NoiseLevel, T: int) -> Tensor:
    """5000 gamma, (B,): the level alone, whatever steps led to it (Sec. 3.2, arXiv 2009.00713).

    Its gamma is ours, the scale of the signal; SR3's is the square. Not the logarithm of the signal-to-noise ratio,
    which is infinite for a clean input.
    """
    return GAMMA_SCALE * level.gamma


Reading = Callable[[NoiseLevel], Tensor]

# what a network is told of a level -> how that is read, given T
READINGS: Mapping[str, Callable[[NoiseLevel, int], Tensor]] = {
    "index": by_index,
    "scaled": by_scaled_index,
    "gamma": by_gamma,
}

# whose waves -> (number, width) -> code
WAVES: Mapping[str, Callable[[Tensor, int], Tensor]] = {"ddpm": sinusoid_ddpm, "improved": sinusoid}


class LevelEmbedding(nn.Module):
    """Sinusoid of t, one Linear or two; a SiLU and one more Linear are each block's own.

    l-DAE: one Linear, a quarter as wide as DiT's, D / 4 (App. A, arXiv 2401.14404): 1.5 D^2 + 6 D parameters
    in each block's adaLN. The paper does not say whether it is one for all blocks; here it is.
    DiT: Linear, SiLU, Linear, both to D (arXiv 2212.09748). DDPM: the same, both to four times the channels of the
    first level (App. B, arXiv 2006.11239).

    Args:
        width: of the returned vector.
        frequencies: width of the sinusoid.
        layers: how many Linears.
        waves: (B,) numbers and a width -> (B, width).
        reading: the number that stands for a level; the step, unless told otherwise.
    """

    def __init__(
        self,
        width: int,
        frequencies: int = 256,
        layers: Literal[1, 2] = 1,
        waves: Callable[[Tensor, int], Tensor] = sinusoid,
        reading: Reading = lambda level: level.t,
    ):
        super().__init__()
        self.frequencies, self.waves, self.reading = frequencies, waves, reading
        self.linear = nn.Linear(frequencies, width)
        self.second = nn.Linear(width, width) if layers == 2 else None

    def forward(self, level: NoiseLevel) -> Tensor:
        """(B,) levels -> (B, width)."""
        c = self.linear(self.waves(self.reading(level), self.frequencies))
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
            label = torch.full((like.shape[0],), self.null, device=like.device)
        return self.table(label)  # (B, width)

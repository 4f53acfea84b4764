"""Embeddings of noise levels and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.types import NoiseLevel
from ldae.nn.embeddings import sinusoid, sinusoid_ddpm

INIT_STD = 0.02  # of DiT's conditioning weights
GAMMA_SCALE = 5000.0  # factor of gamma in [0, 1]


def step_index(level: NoiseLevel, T: int) -> Tensor:
    """Return the step i in {0, ..., T-1}, (B,)."""
    return level.t


def scaled_index(level: NoiseLevel, T: int) -> Tensor:
    """Return i 1000 / T, (B,): the range of DDPM's for every T (`rescale_timesteps` in improved DDPM's code)."""
    return level.t * (1000 / T)


def scaled_gamma(level: NoiseLevel, T: int) -> Tensor:
    """Return 5000 gamma, (B,), independent of the schedule's steps (Sec. 3.2, arXiv 2009.00713).

    gamma is the scale of the signal, as there; SR3's gamma is its square. The log signal-to-noise ratio would be
    infinite for a clean input.
    """
    return GAMMA_SCALE * level.gamma


LevelScalar = Callable[[NoiseLevel], Tensor]

# name -> (level, T) -> the scalar that is embedded
LEVEL_SCALARS: Mapping[str, Callable[[NoiseLevel, int], Tensor]] = {
    "index": step_index,
    "scaled": scaled_index,
    "gamma": scaled_gamma,
}

# name -> (scalars (B,), width) -> sinusoidal embedding (B, width)
WAVES: Mapping[str, Callable[[Tensor, int], Tensor]] = {"ddpm": sinusoid_ddpm, "improved": sinusoid}


class LevelEmbedding(nn.Module):
    """Sinusoidal embedding of t and one Linear or two; each block adds a SiLU and a Linear.

    l-DAE: one Linear, a quarter as wide as DiT's, D / 4 (App. A, arXiv 2401.14404): 1.5 D^2 + 6 D parameters
    in each block's adaLN. The paper leaves open whether blocks share it; here they do.
    DiT: Linear, SiLU, Linear, both to D (arXiv 2212.09748). DDPM: the same, both to four times the channels of the
    first level (App. B, arXiv 2006.11239).

    Args:
        width: of the returned vector.
        frequencies: width of the sinusoid.
        layers: how many Linears.
        waves: (scalars (B,), width) -> (B, width).
        scalar: level -> the scalar that is embedded, (B,); the step by default.
    """

    def __init__(
        self,
        width: int,
        frequencies: int = 256,
        layers: Literal[1, 2] = 1,
        waves: Callable[[Tensor, int], Tensor] = sinusoid,
        scalar: LevelScalar = lambda level: level.t,
    ):
        super().__init__()
        self.frequencies, self.waves, self.scalar = frequencies, waves, scalar
        self.linear = nn.Linear(frequencies, width)
        self.second = nn.Linear(width, width) if layers == 2 else None

    def forward(self, level: NoiseLevel) -> Tensor:
        """Embed noise levels: (B,) -> (B, width)."""
        c = self.linear(self.waves(self.scalar(level), self.frequencies))
        return c if self.second is None else self.second(F.silu(c))

    def initialise(self) -> None:
        """Initialise two layers as DiT does: weights N(0, 0.02^2)."""
        if self.second is not None:
            nn.init.normal_(self.linear.weight, std=INIT_STD)
            nn.init.normal_(self.second.weight, std=INIT_STD)


class LabelEmbedding(nn.Module):
    """Embedding table of K classes and the null class, index K.

    Labels are dropped by the task (`Task.augment_cond`), with the random numbers of the training step.

    Args:
        classes: K.
        width: of a vector.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.null = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=INIT_STD)

    def forward(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Embed labels (B,) int64 in {0, ..., K}, or the null class for None: (B, width), B that of `like`."""
        if label is None:
            label = torch.full((like.shape[0],), self.null, device=like.device)
        return self.table(label)  # (B, width)

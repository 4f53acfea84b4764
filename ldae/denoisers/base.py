"""Interfaces of networks with readable layers, and of denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from torch import Tensor, nn

from ldae.core.types import BatchGenerator, Cond, NoiseLevel
from ldae.nn.masking import Masking


class Network(nn.Module, ABC):
    """Network with readable layers; its inputs and outputs are defined by its objective.

    Attributes:
        layers: numbers of the readable layers, from input to output.
        encoder_layer: the layer whose tokens are the representation.
        prefix: number of class tokens before the patch tokens.
        compiles_whole: whether torch.compile makes one graph of the forward pass.
    """

    layers: tuple[int, ...]
    encoder_layer: int
    prefix: int = 0
    compiles_whole: bool = True

    @abstractmethod
    def undo_zero_init(self) -> None:
        """Replace a zero initialisation of residual blocks by random weights, for an untrained baseline."""


class Denoiser(Network):
    """Network from a corrupted input and its noise level to the prediction of the target."""

    @abstractmethod
    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """Predict the target: x_t (B, C, H, W) -> out (B, C', H', W')."""

    def draw_masking(self, count: int, rng: BatchGenerator) -> Masking | None:
        """Draw which tokens of `count` images the network sees in a training step; None if it sees all.

        A network that returns a masking takes it as a fourth argument of `forward`.
        """
        return None

    def precompute(self, cond: Cond) -> Cond:
        """Return `cond` with features that depend on neither x_t nor the level, to reuse in many passes."""
        return cond

    @abstractmethod
    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the tokens after each of `layers` (default: all), {layer: (B, N, D)}, computing no further layers."""

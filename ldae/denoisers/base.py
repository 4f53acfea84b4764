"""What every network promises, and what a denoiser does beyond it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from torch import Tensor, nn

from ldae.core.types import Cond, NoiseLevel


class Network(nn.Module, ABC):
    """A network with layers to read. What goes in and comes out is between it and its objective.

    Attributes:
        layers: names of the layers that can be read, from input to output.
        encoder_layer: the layer whose tokens are the representation.
        prefix: tokens that stand before those of the patches where a class token is asked for.
    """

    layers: tuple[int, ...]
    encoder_layer: int
    prefix: int = 0

    @abstractmethod
    def undo_zero_init(self) -> None:
        """Undoes an initialisation that makes blocks the identity: an untrained network to compare with."""


class Denoiser(Network):
    """A network from a corrupted input to what its target asks for, readable at every layer."""

    @abstractmethod
    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """x_t (B, C, H, W) -> out (B, C', H', W')."""

    def prepared(self, cond: Cond) -> Cond:
        """`cond` with all that depends on neither x_t nor the level worked out, for many passes; by default nothing."""
        return cond

    @abstractmethod
    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Tokens after each of `layers` (all by default): {layer: (B, N, D)}. Stops at the last of them."""

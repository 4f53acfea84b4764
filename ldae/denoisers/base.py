"""What every denoiser promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from torch import Tensor, nn

from ldae.types import Cond, NoiseLevel


class Denoiser(nn.Module, ABC):
    """A network from a corrupted input to what its target asks for, readable at every layer.

    Attributes:
        layers: names of the layers that `encode` can return, from input to output.
        encoder_layer: the layer whose tokens are the representation.
    """

    layers: tuple[int, ...]
    encoder_layer: int

    @abstractmethod
    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """x_t (B, C, H, W) -> out (B, C', H', W')."""

    @abstractmethod
    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Tokens after each of `layers` (all by default): {layer: (B, N, D)}. Stops at the last of them."""

    @abstractmethod
    def open_gates(self) -> None:
        """Undoes an initialisation that makes blocks the identity: an untrained network to compare with."""

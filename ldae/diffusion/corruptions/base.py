"""What every corruption promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ldae.types import Draws, NoiseLevel


@dataclass(frozen=True)
class State:
    """What was drawn once for an image and holds along its whole trajectory.

    Attributes:
        eps: (B, ...) the noise, shaped like what it corrupts.
    """

    eps: Tensor


class Corruption(ABC):
    """x0 -> x_t at a noise level."""

    @abstractmethod
    def draw(self, x0: Tensor, draws: Draws) -> State:
        """What is random in the corruption of `x0`, (B, ...)."""

    @abstractmethod
    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """x_t, shaped like `x0`."""

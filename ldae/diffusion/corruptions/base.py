"""What every corruption promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ldae.types import Draws, NoiseLevel


@dataclass(frozen=True)
class State:
    """What was drawn once for an image and holds along its whole trajectory; each corruption has its own fields."""


@dataclass(frozen=True)
class Mixed(State):
    """What an image is mixed with.

    Attributes:
        eps: (B, ...) noise, or another image, shaped like what it corrupts.
    """

    eps: Tensor


class Corruption(ABC):
    """x0 -> x_t at a noise level.

    Attributes:
        mixes: whether x_t = gamma x0 + sigma eps, its state a `Mixed`: what targets other than x0 are built from.
    """

    mixes = False

    @abstractmethod
    def draw(self, x0: Tensor, draws: Draws) -> State:
        """What is random in the corruption of `x0`, (B, ...)."""

    @abstractmethod
    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """x_t, shaped like `x0`."""

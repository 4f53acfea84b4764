"""Interface of corruptions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel


@dataclass(frozen=True)
class State:
    """Random state of a corruption, fixed along the trajectory of an image; subclasses add fields."""


@dataclass(frozen=True)
class Mixed(State):
    """State of a corruption that mixes an image with a second signal.

    Attributes:
        eps: (B, ...) noise, or another image, shaped like x0.
    """

    eps: Tensor


class Corruption(ABC):
    """x0 -> x_t at a noise level; D(x0, t + 1) of Cold Diffusion (arXiv 2208.09392), whose D(x0, 0) is x0.

    Attributes:
        is_additive: x_t = gamma x0 + sigma eps with a `Mixed` state; targets other than x0 need it.
        pixel_only: it is defined for images in [-1, 1] of one size, not for latents; Cold Diffusion's rules invert it.
    """

    is_additive = False
    pixel_only = False

    @abstractmethod
    def draw(self, x0: Tensor, rng: BatchGenerator) -> State:
        """Draw the random state of the corruption of `x0`, (B, ...)."""

    @abstractmethod
    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return x_t, shaped like `x0`, each image at its own level, t >= 0."""

    def corrupt(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return x_t as the input of a network and of a restoration.

        Differs from `at`, the D of a sampler, where the published code quantises the input to 8 bits.
        """
        return self.at(x0, level, state)

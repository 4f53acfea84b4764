"""Interface of corruptions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel


@dataclass(frozen=True)
class State:
    """Random state of a corruption, fixed along the trajectory of an image; subclasses add fields."""

    @property
    def hidden(self) -> Tensor | None:
        """Return which numbers of x0 the loss is restricted to, bool and broadcastable to x0; None for all."""
        return None


@dataclass(frozen=True)
class Mixed(State):
    """State of a corruption that mixes an image with a second signal.

    Attributes:
        eps: (B, ...) noise, or another image, shaped like x0.
    """

    eps: Tensor


@runtime_checkable
class HasSpectrum(Protocol):
    """Tokenizer whose latent dimensions have known variances over its training images."""

    def variances(self) -> Tensor:
        """Return the variance of each latent dimension, (d,) float64; raises NotFittedError before the fit.

        On the tokenizer's device: it is called at every step, where a copy to the host would wait for a GPU.
        """


class Corruption(ABC):
    """x0 -> x_t at a noise level; D(x0, t + 1) of Cold Diffusion (arXiv 2208.09392), whose D(x0, 0) is x0.

    Attributes:
        is_additive: x_t = gamma x0 + sigma eps with a `Mixed` state; targets other than x0 need it.
        pixel_only: it is defined for images in [-1, 1] of one size, not for latents; Cold Diffusion's rules invert it.
        hides: its states have `hidden` numbers.
        samplable: samplers can invert it; else it is for pretraining alone.
    """

    is_additive = False
    pixel_only = False
    hides = False
    samplable = True

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

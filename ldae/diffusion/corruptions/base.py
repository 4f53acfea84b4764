"""What every corruption promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel


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
    """x0 -> x_t at a noise level; D(x0, t + 1) of Cold Diffusion (arXiv 2208.09392), whose D(x0, 0) is x0.

    Attributes:
        mixes: whether x_t = gamma x0 + sigma eps, its state a `Mixed`: what targets other than x0 are built from.
        of_images: whether it means something for images in [-1, 1] alone, at the size that it was made for: any but
            Gaussian noise. Cold Diffusion's rules undo it.
    """

    is_additive = False
    pixel_only = False

    @abstractmethod
    def draw(self, x0: Tensor, rng: BatchGenerator) -> State:
        """What is random in the corruption of `x0`, (B, ...)."""

    @abstractmethod
    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """x_t, shaped like `x0`; each image at its own level, t of 0 and above."""

    def observed(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """x_t as a network is trained on it and as a restoration starts from it.

        Differs from `at` where the published one is rounded to 8 bits there, but not in a sampler's D.
        """
        return self.at(x0, level, state)

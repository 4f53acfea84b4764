"""What every objective promises to the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Metrics, TrainableModule
from ldae.denoisers.base import Network
from ldae.tokenizers.base import Tokenizer


class Objective(nn.Module, ABC):
    """A player (see ldae.core.types.Player): `network` has the parameters, calling it gives the loss."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        """All who learn here, by the name that their weights have in a checkpoint; their turns come in this order."""
        return {"model": self}

    def is_active(self, step: int) -> bool:
        """Told the step before its loss is asked for: whether it learns at this step."""
        return True

    @abstractmethod
    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """The loss (float32 scalar, mean over the batch) and what was measured."""

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        """What was drawn for each image, for a report on a failed step."""
        return {}


class Panel(Protocol):
    """Something to look at in the course of a training.

    Attributes:
        name: of its rows in the log.
        every: steps between looks; 0 for the start alone.
    """

    name: str
    every: int

    def __call__(self, step: int) -> tuple[Mapping[str, float], Mapping[str, Tensor]]:
        """Scalars, and pictures (3, H, W) in [0, 1]."""


class PretrainingObjective(Objective):
    """An objective whose network is read for features when it is trained: all that probes and exports know.

    Attributes:
        network: with `layers` and an `encoder_layer`.
        tokenizer: what its images go through, or None; a run keeps it beside its checkpoints.
        image_shape: (3, H, W) of the images that the network is trained on.
        T: how many noise levels there are; 1 where there is no noise.
        noisy: whether its input can be noised.
    """

    noisy = True

    network: Network
    tokenizer: Tokenizer | None
    image_shape: tuple[int, int, int]
    T: int

    @classmethod
    @abstractmethod
    def check_network(cls, network: type[Network]) -> None:
        """Refuse a class of networks that this objective cannot train.

        Raises:
            ConfigError: naming the denoiser and what would do.
        """

    def check_readable(self, t: int, noised: bool) -> None:
        """Whether tokens can be read at level t, from clean or noised input.

        Raises:
            ConfigError: there is no such level, or no noise to add.
        """
        if not 0 <= t < self.T:
            raise ConfigError("t", t, f"must be in 0..{self.T - 1}")
        if noised and not self.noisy:
            raise ConfigError(
                "inputs", "noised", f"needs noise, and {type(self).__name__} has none; use inputs=[clean]"
            )

    @abstractmethod
    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        rng: BatchGenerator | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        """Tokens of whole images after some layers of the network, in one pass.

        Args:
            images: (B, 3, H, W) in [0, 1].
            layers: of `network.layers`.
            t: step of the noise level that the network is told, below T.
            draws: noise for the input at that level; clean input if None.
            class_token: whether the class token stands first, of a network that has one (`prefix` 1).

        Returns:
            {layer: (B, N, D)}.
        """


def full_precision(like: Tensor) -> torch.autocast:
    """A block in which autocast is off: tokenizers, noise and losses are float32."""
    return torch.autocast(like.device.type, enabled=False)

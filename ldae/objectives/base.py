"""Interface of objectives."""

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
    """Trainable module (ldae.core.types.TrainableModule): `network` has the parameters, calling it returns the loss."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        """Return the trainable modules by their names in a checkpoint, in the order of their updates."""
        return {"model": self}

    def is_active(self, step: int) -> bool:
        """Return whether this module is updated at `step`; called before its loss."""
        return True

    @abstractmethod
    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the loss (float32 scalar, mean over the batch) and metrics."""

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        """Return random numbers of the loss for each image, for the report of a failed step."""
        return {}


class Panel(Protocol):
    """Diagnostic pictures and scalars during training.

    Attributes:
        name: prefix of its rows in the log.
        every: steps between pictures; 0 for the first step only.
    """

    name: str
    every: int

    def __call__(self, step: int) -> tuple[Mapping[str, float], Mapping[str, Tensor]]:
        """Return scalars, and pictures (3, H, W) in [0, 1]."""


class PretrainingObjective(Objective):
    """Objective that trains an encoder: the interface of probes and exports.

    Attributes:
        network: with `layers` and an `encoder_layer`.
        tokenizer: of the images, or None; a run saves it beside its checkpoints.
        image_shape: (3, H, W) of the training images.
        T: number of noise levels; 1 without noise.
        has_noise: its input can be noised.
    """

    has_noise = True

    network: Network
    tokenizer: Tokenizer | None
    image_shape: tuple[int, int, int]
    T: int

    @classmethod
    @abstractmethod
    def check_network(cls, network: type[Network]) -> None:
        """Refuse a class of networks that this objective cannot train.

        Raises:
            ConfigError: naming the denoiser and a suitable one.
        """

    def check_readable(self, t: int, noised: bool) -> None:
        """Check that tokens can be read at level t, from clean or noised input.

        Raises:
            ConfigError: there is no such level, or the objective has no noise.
        """
        if not 0 <= t < self.T:
            raise ConfigError("t", t, f"must be in 0..{self.T - 1}")
        if noised and not self.has_noise:
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
        """Return the tokens of whole images after some layers of the network, in one pass.

        Args:
            images: (B, 3, H, W) in [0, 1].
            layers: of `network.layers`.
            t: step of the noise level in the condition, below T.
            rng: of the noise of the input at that level; None for clean input.
            class_token: put the class token first, if the network has one (`prefix` 1).

        Returns:
            {layer: (B, N, D)}.
        """


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context without autocast, for tokenizers, noise and losses in float32."""
    return torch.autocast(like.device.type, enabled=False)

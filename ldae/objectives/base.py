"""What every objective promises to the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldae.types import Batch, Draws, Metrics, Player


class Objective(nn.Module, ABC):
    """A player (see ldae.types.Player): `network` has the parameters, calling it gives the loss."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def players(self) -> Mapping[str, Player]:
        """All who learn here, by the name that their weights have in a checkpoint; their turns come in this order."""
        return {"denoiser": self}

    def turn(self, step: int) -> bool:
        """Told the step before its loss is asked for: whether it learns at this step."""
        return True

    @abstractmethod
    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """The loss (float32 scalar, mean over the batch) and what was measured."""

    def describe(self, batch: Batch, draws: Draws) -> Mapping[str, list[float]]:
        """What was drawn for each image, for a report on a failed step."""
        return {}


def full_precision(like: Tensor) -> torch.autocast:
    """A block in which autocast is off: tokenizers, noise and losses are float32."""
    return torch.autocast(like.device.type, enabled=False)

"""Desaturation."""

from __future__ import annotations

import torch
from torch import Tensor

from ldae.core.types import BatchGenerator, NoiseLevel, expand
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.corruptions.tables import Table
from ldae.diffusion.schedules import NoiseSchedule


class Colour(Corruption):
    """x_t = w_t x0 + (1 - w_t) mean over the channels, w_t = 1 - (t + 1) / T: grey at T-1.

    w_t is the product of the published factors 1 - (1/T) / (1 - t/T) of each step (code of arXiv 2208.09392).

    Args:
        schedule: gives T.
    """

    pixel_only = True

    def __init__(self, schedule: NoiseSchedule):
        T = schedule.T
        self.kept = Table(1 - torch.arange(1, T + 1, dtype=torch.float64) / T)

    def draw(self, x0: Tensor, rng: BatchGenerator) -> State:
        """Return the empty state: the corruption is deterministic."""
        return State()

    def at(self, x0: Tensor, level: NoiseLevel, state: State) -> Tensor:
        """Return images moved towards grey."""
        w = expand(self.kept[level.t], x0)
        return w * x0 + (1 - w) * x0.mean(1, keepdim=True)

"""The noise levels that a sampler visits, and what a network tells it at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldae.diffusion.schedules import NoiseSchedule
from ldae.types import NoiseLevel


@dataclass(frozen=True)
class Stage:
    """One noise level of a trajectory, the same for all images of a batch; numbers are float64.

    Attributes:
        t: step of the schedule that the network was trained with, never the position in a shortened sequence; -1 for
            clean.
        gamma: scale of the clean signal.
        sigma: standard deviation of the noise.
    """

    t: int
    gamma: float
    sigma: float

    def level(self, like: Tensor) -> NoiseLevel:
        """The level of each image of a batch `like`, (B, ...), on its device."""
        filled = lambda value: torch.full((len(like),), value, device=like.device)  # noqa: E731
        return NoiseLevel(filled(self.t), filled(self.gamma), filled(self.sigma))


CLEAN = Stage(-1, 1.0, 0.0)


@dataclass(frozen=True)
class Prediction:
    """What a network says at x_t.

    Attributes:
        x0: (B, ...) the clean signal as it takes it to be.
        share: (B, ...) f of a learned variance, ln variance = f ln beta + (1 - f) ln beta_tilde, or None.
    """

    x0: Tensor
    share: Tensor | None = None


def stages(schedule: NoiseSchedule, steps: Tensor) -> Sequence[Stage]:
    """The stages of `steps`, (S,) int64 decreasing, and after them the clean one."""
    found = [Stage(int(t), float(schedule.gamma[t]), float(schedule.sigma[t])) for t in steps]
    return [*found, CLEAN]

"""Schedules without noise: for corruptions that know t alone, and for networks that are shown nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ldae.diffusion.schedules import NoiseSchedule
from ldae.parts import Count


class Steps(NoiseSchedule):
    """T steps and nothing more: gamma = 1, sigma = 0; how much of x0 is left is the corruption's (arXiv 2208.09392)."""

    def __init__(self, T: Count = 50):
        super().__init__(T)

    def table(self) -> tuple[Tensor, Tensor]:
        return torch.ones(self.T, dtype=torch.float64), torch.zeros(self.T, dtype=torch.float64)


class Blank(NoiseSchedule):
    """One step at which nothing of x0 is left, gamma = sigma = 0: regression from the condition alone.

    SR3's baseline (Sec. 4, arXiv 2104.07636). Whatever the sampler, its answer is the network's.
    """

    def __init__(self) -> None:
        super().__init__(T=1)

    def table(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

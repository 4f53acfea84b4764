"""Which noise levels to train at, where their losses differ by orders of magnitude."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ldae.core.types import BatchGenerator, Count, Fraction, NoiseLevel
from ldae.diffusion.schedules import NoiseSchedule


class Timesteps(nn.Module, ABC):
    """Draws the noise levels of a batch. What it remembers is in its buffers: a checkpoint keeps them."""

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor | None]:
        """A level for each of `count` images, and what its loss is to be multiplied by, (count,), or None: nothing."""

    def record(self, t: Tensor, losses: Tensor) -> None:
        """Told the losses (B,) at steps t (B,), unweighted."""


class Uniform(Timesteps):
    """As the schedule draws them: t uniform (L_simple, Eq. 14 of arXiv 2006.11239)."""

    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor | None]:
        return schedule.draw(count, rng), None


class LossAware(Timesteps):
    """p_t ~ sqrt(E[L_t^2]) over the last losses of each t (Eq. 18, arXiv 2102.09672): for the bound alone.

    Uniform until every t has its history. Of several processes each records the losses of all.

    Args:
        schedule: whose T steps.
        history: losses remembered for each t.
        uniform: share of the probability that all t have alike, so that none is ever left out.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, schedule: NoiseSchedule, history: Count = 10, uniform: Fraction = 0.001):
        super().__init__()
        self.T, self.uniform = (T := schedule.T), uniform
        self.register_buffer("losses", torch.zeros(T, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p_t, (T,) float64."""
        even = torch.full_like(self.losses[:, 0], 1 / self.T)
        size = self.losses.square().mean(1).sqrt()  # (T,)
        if (self.counts < self.losses.shape[1]).any() or size.sum() == 0:
            return even
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor]:
        """As Timesteps; the factor is 1 / (T p_t): the mean of weighted losses is that of losses at uniform t."""
        p = self.probabilities()
        # the second number refines the first, whose 2^-24 is no fine grid beside the smallest p
        u = rng.uniform((count, 2)).to(p)
        t = torch.searchsorted(p.cumsum(0), u[:, 0] + u[:, 1] * 2**-24, right=True).clamp(max=self.T - 1)
        return schedule.at(t), (1 / (self.T * p[t])).float()

    @torch.no_grad()
    def record(self, t: Tensor, losses: Tensor) -> None:
        """Takes in losses; the oldest of a t give way."""
        for step, loss in zip(_of_all(t).tolist(), _of_all(losses).to(self.losses), strict=True):
            kept, size = self.losses[step], self.losses.shape[1]
            if self.counts[step] == size:
                kept.copy_(kept.roll(-1))
                kept[-1] = loss
            else:
                kept[self.counts[step]] = loss
                self.counts[step] += 1


def _of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    found = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(found, rows.contiguous())
    return torch.cat(found)

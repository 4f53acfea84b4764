"""Distributions of the noise levels of a training batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ldae.core.types import BatchGenerator, Count, Fraction, NoiseLevel
from ldae.diffusion.schedules import NoiseSchedule


class Timesteps(nn.Module, ABC):
    """Distribution of the noise levels of a batch; its state is in buffers, which checkpoints keep.

    Attributes:
        clean: fraction of the images that get no noise.
        per_token: every token of an image has a level of its own.
    """

    clean: float = 0.0
    per_token = False

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor | None]:
        """Draw a level for each of `count` images, and the importance weights of their losses, (count,); None for 1."""

    def record(self, t: Tensor, losses: Tensor) -> None:
        """Record the unweighted losses (B,) at steps t (B,)."""


class Uniform(Timesteps):
    """t uniform, or as the schedule draws it (L_simple, Eq. 14 of arXiv 2006.11239).

    Args:
        clean: fraction of the images that get no noise, gamma = 1 and sigma = 0, at t = 0. With masked tokens
            (`denoiser.keep`) these steps are those of a masked autoencoder (UMD, arXiv 2406.17688).
    """

    def __init__(self, clean: Fraction = 0.0):
        super().__init__()
        self.clean = clean

    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor | None]:
        """Draw levels by the schedule, or without noise; no importance weights."""
        level = schedule.draw(count, rng)
        if self.clean:
            level = noise_free(level, rng.uniform((count,)) < self.clean)
        return level, None


class PerToken(Timesteps):
    """t uniform for every token of an image on its own, as in diffusion forcing (arXiv 2407.01392).

    Almost clean tokens lie beside tokens of almost pure noise, which have to be told from their surroundings: a soft
    mask. The network is not told the levels (`denoiser.noise_conditioning=false`).

    Args:
        grid: (h, w) tokens.
        latent_size: (H, W) of the latent, multiples of the grid's.
    """

    per_token = True

    def __init__(self, grid: tuple[int, int], latent_size: tuple[int, int]):
        super().__init__()
        self.grid, self.scale = grid, (latent_size[0] // grid[0], latent_size[1] // grid[1])

    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, None]:
        """Draw levels (count, 1, H, W); no importance weights."""
        t = (rng.uniform((count, 1, *self.grid)) * schedule.T).long().clamp(max=schedule.T - 1)
        return schedule.at(t.repeat_interleave(self.scale[0], -2).repeat_interleave(self.scale[1], -1)), None


class LossAware(Timesteps):
    """Importance sampling of t with p_t ~ sqrt(E[L_t^2]) over the last losses (Eq. 18, arXiv 2102.09672), for L_vlb.

    Uniform until every t has its history. Every process records the losses of all processes.

    Args:
        schedule: gives T.
        history: losses kept for each t.
        uniform: probability mass spread evenly over all t, so that every t is drawn.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, schedule: NoiseSchedule, history: Count = 10, uniform: Fraction = 0.001):
        super().__init__()
        self.T, self.uniform = (T := schedule.T), uniform
        self.register_buffer("losses", torch.zeros(T, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Return p_t, (T,) float64."""
        even = torch.full_like(self.losses[:, 0], 1 / self.T)
        size = self.losses.square().mean(1).sqrt()  # (T,)
        is_even = (self.counts < self.losses.shape[1]).any() | (size.sum() == 0)
        return torch.where(is_even, even, (1 - self.uniform) * size / size.sum() + self.uniform * even)

    def draw(self, schedule: NoiseSchedule, count: int, rng: BatchGenerator) -> tuple[NoiseLevel, Tensor]:
        """Draw levels with weights 1 / (T p_t): the mean of the weighted losses is that of losses at uniform t."""
        p = self.probabilities()
        # two numbers of 24 bits: the grid of one, 2^-24, is coarse against the smallest p
        u = rng.uniform((count, 2)).to(p)
        t = torch.searchsorted(p.cumsum(0), u[:, 0] + u[:, 1] * 2**-24, right=True).clamp(max=self.T - 1)
        return schedule.at(t), (1 / (self.T * p[t])).float()

    @torch.no_grad()
    def record(self, t: Tensor, losses: Tensor) -> None:
        """Record losses; the oldest of each t are dropped."""
        order = torch.sort(_gather(t), stable=True)
        steps, new = order.values, _gather(losses).to(self.losses)[order.indices]  # (B,) each, in groups of equal t
        rank = torch.arange(len(steps), device=steps.device) - torch.searchsorted(steps, steps)  # in the group
        size = self.losses.shape[1]
        total = self.counts.scatter_add(0, steps, torch.ones_like(steps))  # (T,) losses, new ones included
        dropped = (total - size).clamp(min=0)
        # one more column takes what is not kept
        column = torch.arange(size + 1, device=steps.device)
        source = (column + dropped[:, None]).clamp(max=size)  # (T, size + 1)
        kept = nn.functional.pad(self.losses, (0, 1)).gather(1, source)
        place = self.counts[steps] + rank - dropped[steps]
        kept[steps, torch.where(place < 0, size, place)] = new
        self.losses.copy_(kept[:, :size])
        self.counts.copy_(total.clamp(max=size))


def noise_free(level: NoiseLevel, where: Tensor | None = None) -> NoiseLevel:
    """Return levels without noise, t = 0, gamma = 1 and sigma = 0, at `where`, (B,) bool; everywhere for None."""
    where = torch.ones_like(level.t, dtype=torch.bool) if where is None else where
    t, gamma, sigma = level.t.masked_fill(where, 0), level.gamma.masked_fill(where, 1), level.sigma
    return NoiseLevel(t, gamma, sigma.masked_fill(where, 0))


def _gather(rows: Tensor) -> Tensor:
    """Gather the rows of all processes in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)

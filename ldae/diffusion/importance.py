"""Which noise levels to train at, where their losses differ by orders of magnitude."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldae.parts import Count, Fraction
from ldae.types import Draws


class LossAware(nn.Module):
    """p_t ~ sqrt(E[L_t^2]) over the last losses of each t (Eq. 18, arXiv 2102.09672): for the bound alone.

    Uniform until every t has its history. Its state is two buffers, so that a checkpoint holds it. Over several
    processes each must record the losses of all, or they draw differently.

    Args:
        T: steps of the schedule.
        history: losses remembered for each t.
        uniform: share of the probability that all t have alike, so that none is ever left out.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, T: Count, history: Count = 10, uniform: Fraction = 0.001):
        super().__init__()
        self.T, self.uniform = T, uniform
        self.register_buffer("losses", torch.zeros(T, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p_t, (T,) float64."""
        even = torch.full_like(self.losses[:, 0], 1 / self.T)
        size = self.losses.square().mean(1).sqrt()  # (T,)
        if (self.counts < self.losses.shape[1]).any() or size.sum() == 0:
            return even
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def draw(self, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """`count` steps, (count,) int64, and what their losses are to be multiplied by, 1 / (T p_t), (count,) float32.

        The mean of the weighted losses is that of losses at uniform t.
        """
        p = self.probabilities()
        # the second number refines the first, whose 2^-24 is no fine grid beside the smallest p
        u = draws.uniform((count, 2)).to(p)
        t = torch.searchsorted(p.cumsum(0), u[:, 0] + u[:, 1] * 2**-24, right=True).clamp(max=self.T - 1)
        return t, (1 / (self.T * p[t])).float()

    @torch.no_grad()
    def record(self, t: Tensor, losses: Tensor) -> None:
        """Takes in losses (B,) at steps t (B,), unweighted; the oldest of a t give way."""
        for step, loss in zip(t.tolist(), losses.to(self.losses), strict=True):
            kept, size = self.losses[step], self.losses.shape[1]
            if self.counts[step] == size:
                kept.copy_(kept.roll(-1))
                kept[-1] = loss
            else:
                kept[self.counts[step]] = loss
                self.counts[step] += 1

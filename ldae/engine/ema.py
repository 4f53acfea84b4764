"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """average <- m average + (1 - m) weights after every step, with m rising to `decay`.

    m = min(decay, (1 + n) / (10 + n)) after n steps, so that the initial weights vanish from the average of a short
    run. With decay = 0 the average equals the weights.

    Args:
        weights: live parameters by name, which `applied` replaces for a while.
        decay: maximum of m, in [0, 1).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.weights, self.decay = dict(weights), decay
        self.average = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step `step` >= 1."""
        m = min(self.decay, (1 + step) / (10 + step))
        if m == 0:
            torch._foreach_copy_(list(self.average.values()), list(self.weights.values()))
            return
        get_ema_multi_avg_fn(m)(list(self.average.values()), list(self.weights.values()), 0)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Replace the average by a saved one."""
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Replace the weights of the network by the average for the block, and restore them after it."""
        live, average = list(self.weights.values()), list(self.average.values())
        backup = [w.detach().clone() for w in live]
        torch._foreach_copy_(live, average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, backup)

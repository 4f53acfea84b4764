"""An exponential moving average of the weights; what is probed and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """average <- m average + (1 - m) weights after every step; m rises to `decay`.

    m = min(decay, (1 + n) / (10 + n)) after n steps, so that a short run's average forgets its start.
    decay = 0 keeps the weights themselves.

    Args:
        weights: the live parameters by name; they are read, and swapped while `applied`.
        decay: 0 <= decay < 1.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.weights, self.decay = dict(weights), decay
        self.average = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step `step` >= 1."""
        m = min(self.decay, (1 + step) / (10 + step))
        if m == 0:
            torch._foreach_copy_(list(self.average.values()), list(self.weights.values()))
            return
        get_ema_multi_avg_fn(m)(list(self.average.values()), list(self.weights.values()), 0)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continues from a saved average."""
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """While the block lasts, the network has the averaged weights."""
        live, average = list(self.weights.values()), list(self.average.values())
        kept = [w.detach().clone() for w in live]
        torch._foreach_copy_(live, average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, kept)

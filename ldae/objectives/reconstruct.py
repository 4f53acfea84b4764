"""Training a tokenizer to give back what it was shown."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldae.objectives.base import Objective
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer
from ldae.types import Batch, Draws, Metrics, Player


class Reconstruct(Objective):
    """The tokenizer's own loss on clean images (AE, VAE).

    Args:
        task: batch -> (x0, cond).
        tokenizer: one that is trained.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer):
        super().__init__(network=tokenizer)
        self.task, self.tokenizer = task, tokenizer

    @property
    def players(self) -> Mapping[str, Player]:
        return {"tokenizer": self}

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        x0, _ = self.task(batch)
        return self.tokenizer.loss(x0, draws)

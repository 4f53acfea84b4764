"""Training of tokenizers by their reconstruction loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldae.core.types import Batch, BatchGenerator, Metrics, TrainableModule
from ldae.objectives.base import Objective
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer


class Reconstruct(Objective):
    """Loss of the tokenizer on clean images (AE, VAE).

    Args:
        task: batch -> (x0, cond).
        tokenizer: one that is trained.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer):
        super().__init__(network=tokenizer)
        self.task, self.tokenizer = task, tokenizer

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        """Return the tokenizer."""
        return {"tokenizer": self}

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the tokenizer's own loss."""
        x0, _ = self.task(batch)
        return self.tokenizer.loss(x0, rng)

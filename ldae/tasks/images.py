"""Tasks on images alone: without labels, or with their classes as the condition."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldae.core.types import Batch, BatchGenerator, Cond, Count, Fraction
from ldae.tasks.base import Task


class Images(Task):
    """x0 = 2 image - 1, no condition: all of self-supervised l-DAE."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return 2 * batch.images - 1, Cond()


class Labelled(Task):
    """x0 = 2 image - 1; the denoiser is told the class, in training not always (arXiv 2207.12598, Alg. 1).

    Args:
        classes: K, of the data set.
        dropout: probability that a label is withheld in training; the network then learns the unconditional
            distribution too, which guidance needs.
    """

    def __init__(self, classes: Count, dropout: Fraction = 0.1):
        self.classes, self.dropout = classes, dropout

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return 2 * batch.images - 1, Cond(label=batch.labels)

    def in_training(self, cond: Cond, rng: BatchGenerator) -> Cond:
        """Each label becomes K, the label of no class, with probability `dropout`."""
        assert cond.label is not None
        withheld = rng.uniform(cond.label.shape) < self.dropout  # (B,)
        return replace(cond, label=torch.where(withheld, self.classes, cond.label))

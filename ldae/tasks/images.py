"""Tasks on images alone: without labels, or with their classes as the condition."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldae.core.types import Batch, BatchGenerator, Cond, Count, Fraction
from ldae.tasks.base import Task


class Images(Task):
    """x0 = 2 image - 1, no condition: all of self-supervised l-DAE."""

    x0_is_image = True

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return 2 * batch.images - 1, Cond()


class Labelled(Task):
    """x0 = 2 image - 1 with the class as condition, dropped at random in training (Alg. 1, arXiv 2207.12598).

    Args:
        classes: K, of the data set.
        dropout: probability of the null class in training; classifier-free guidance needs it above 0.
    """

    x0_is_image = True

    def __init__(self, classes: Count, dropout: Fraction = 0.1):
        self.classes, self.dropout = classes, dropout

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return 2 * batch.images - 1, Cond(label=batch.labels)

    def augment_cond(self, cond: Cond, rng: BatchGenerator) -> Cond:
        """Replace each label by the null class K with probability `dropout`."""
        assert cond.label is not None
        dropped = rng.uniform(cond.label.shape) < self.dropout  # (B,)
        return replace(cond, label=torch.where(dropped, self.classes, cond.label))

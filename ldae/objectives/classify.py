"""Training a classifier on labels: the perceptual network where no weights come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ldae.core.types import Batch, BatchGenerator, Metrics, TrainableModule
from ldae.nn.perceptual import Classifier, Perceptual
from ldae.objectives.autoencode import sum_and_count
from ldae.objectives.base import Objective
from ldae.tasks.base import Task


class Classify(Objective):
    """Cross-entropy.

    Args:
        task: batch -> (x0, cond).
        perceptual: a classifier.
    """

    def __init__(self, task: Task, perceptual: Perceptual):
        assert isinstance(perceptual, Classifier)
        super().__init__(network=perceptual.requires_grad_(True).train())  # frozen where it serves
        self.task, self.classifier = task, perceptual

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        """Return the classifier."""
        return {"perceptual": self}

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy of the labels."""
        x0, _ = self.task(batch)
        logits = self.classifier.logits(x0).float()
        right = (logits.argmax(1) == batch.labels).float()
        return F.cross_entropy(logits, batch.labels), {"accuracy": sum_and_count(right)}

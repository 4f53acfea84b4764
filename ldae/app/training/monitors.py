"""Evaluate a network during pretraining: preview batches and the online kNN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import DataError
from ldae.core.rng import permutation
from ldae.core.types import Batch, Count, Natural
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import in_order
from ldae.export.encoder import Encoder
from ldae.objectives.base import PretrainingObjective
from linear_probe.knn import accuracy, knn_predict

if TYPE_CHECKING:
    from ldae.app.session import Session


@dataclass(frozen=True)
class MonitorSettings:
    """Configure the evaluations during pretraining.

    Attributes:
        num_evals: number of evaluations in a run; 0 for none.
        panel_images: hold-out images to denoise and measure.
        knn_images: training images in the bank of the online kNN, which classifies half as many hold-out images; 0
            switches it off, None selects 2,000 on a CPU (seconds) and 8,000 on a GPU.
        patience: number of evaluations without a new maximum of the online kNN after which the run ends; None: never.
    """

    num_evals: Natural
    panel_images: Count
    knn_images: Natural | None
    patience: Count | None = None

    def every(self, total: int) -> int:
        """Return the number of steps between evaluations in a run of `total` steps."""
        return max(1, math.ceil(total / self.num_evals))

    def bank(self, device: str) -> int:
        """Return the size of the bank on a device of a type."""
        return self.knn_images if self.knn_images is not None else 2000 if device == "cpu" else 8000


def preview(session: Session, images: ImageSet, count: int) -> Batch:
    """Return a batch of `count` images, evenly spaced over a set, on the device."""
    return joined(list(in_order(spread(images, count), 64, session.world.device)))


def spread(images: ImageSet, count: int) -> ImageSet:
    """Return `count` images, evenly spaced over a set, or the whole set if it is smaller.

    Raises:
        DataError: the set is empty.
    """
    if not len(images):
        raise DataError("data: the split has no images; give more images, or raise data.holdout or data.test")
    return images.subset(np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)))


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches."""
    fields = ([getattr(b, name) for b in batches] for name in ("images", "labels", "index", "latents", "masks"))
    return Batch(*(None if values[0] is None else torch.cat(values) for values in fields))  # type: ignore[arg-type]


class OnlineKNN:
    """Measure the kNN accuracy of the hold-out among training images on the encoder's mean tokens.

    Two references need no training: the most frequent class (`chance`), and the same network before its first step with
    `undo_zero_init` applied (`untrained`, as in the probe's table). At step 0 the blocks are the identity, so the first
    accuracy is that of the patch embedding.

    Args:
        session: device, data and config.
        objective: objective in training.
        splits: train is the bank, the hold-out the queries.
        every: steps between evaluations.
        count: maximum of training images in the bank; half as many hold-out images are queries.
        start: function that returns the objective before its first step; None leaves `untrained` out.
    """

    name = "knn"
    metric = "knn_holdout/model"
    K = 20

    def __init__(
        self,
        session: Session,
        objective: PretrainingObjective,
        splits: Splits,
        every: int,
        count: int,
        start: Callable[[], PretrainingObjective] | None,
    ):
        self.session, self.every, self.classes, self.start = session, every, len(splits.classes), start
        self.encoder = self._encoder(objective)
        self.bank, self.queries = _some(splits.train, count), _some(splits.holdout, max(1, count // 2))
        self.baselines: dict[str, float] | None = None

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        if self.baselines is None:
            self.baselines = self._baselines()
        return {self.metric: self._accuracy(self.encoder), **self.baselines}, {}

    def headline(self, scalars: Mapping[str, float]) -> str:
        """Return a sentence on the accuracies."""
        names = [name for name in ("untrained", "chance") if f"knn_holdout/{name}" in scalars]
        baselines = ", ".join(f"{name} {scalars[f'knn_holdout/{name}']:.1f}" for name in names)
        return f"kNN hold-out {scalars[self.metric]:.1f} % ({baselines})"

    def _encoder(self, objective: PretrainingObjective) -> Encoder:
        return Encoder(objective, precision=self.session.config["train"]["precision"])

    def _baselines(self) -> dict[str, float]:
        commonest = self.bank.own_labels.mode().values
        baselines = {"knn_holdout/chance": 100 * (self.queries.own_labels == commonest).double().mean().item()}
        if self.start is not None:
            with torch.random.fork_rng():
                objective = self.start()
            objective.network.undo_zero_init()
            objective.eval().to(self.session.world.device)
            baselines["knn_holdout/untrained"] = self._accuracy(self._encoder(objective))
        return baselines

    def _accuracy(self, encoder: Encoder) -> float:
        (bank, labels), (queries, truth) = self._features(encoder, self.bank), self._features(encoder, self.queries)
        return accuracy(knn_predict(bank, labels, queries, [self.K], self.classes)[self.K], truth)

    def _features(self, encoder: Encoder, images: ImageSet) -> tuple[Tensor, Tensor]:
        poll = self.session.stop.poll if self.session.world.size == 1 else lambda: None
        pairs = [
            (encoder(batch.images).cpu(), batch.labels.cpu())
            for batch in in_order(images, 250, self.session.world.device, self.session.config["data"]["workers"], poll)
        ]
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _some(images: ImageSet, count: int) -> ImageSet:
    return images.subset(permutation(0, 0, len(images))[:count].sort().values.numpy())

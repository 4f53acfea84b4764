"""What pretraining looks at now and then, where the network meets the evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ldae.counter import permutation
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import in_order
from ldae.export import Encoder
from ldae.objectives.base import Representing
from ldae.parts import Count, Natural
from ldae.types import Batch
from linear_probe.knn import accuracy, knn_predict

if TYPE_CHECKING:
    from _session import Session


@dataclass(frozen=True)
class MonitorSettings:
    """How closely pretraining is watched.

    Attributes:
        looks: in the course of the run; 0 for none.
        panel_images: of the hold-out that are denoised and measured.
        knn_images: training images in the online kNN's bank; 0 for none.
    """

    looks: Natural
    panel_images: Count
    knn_images: Natural


def preview(session: Session, images: ImageSet, count: int) -> Batch:
    """`count` images of a set, spread over it, on the device."""
    return joined(list(in_order(spread(images, count), 64, session.world.device)))


def spread(images: ImageSet, count: int) -> ImageSet:
    """`count` images of a set, or all, evenly spread over it."""
    return images.subset(np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)))


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches one after another, as one."""
    fields = ([getattr(b, name) for b in batches] for name in ("images", "labels", "index", "latents", "masks"))
    return Batch(*(None if found[0] is None else torch.cat(found) for found in fields))  # type: ignore[arg-type]


class OnlineKNN:
    """Nearest neighbours of the hold-out among training images, on the encoder's averaged tokens.

    Args:
        every: steps between looks.
        count: training images in the bank, at most; a quarter as many of the hold-out are asked.
    """

    name = "knn"
    K = 20

    def __init__(self, session: Session, objective: Representing, splits: Splits, every: int, count: int):
        self.session, self.every, self.classes = session, every, len(splits.classes)
        precision = session.config["train"]["precision"]
        self.encoder = Encoder(objective, precision=precision)
        self.bank, self.queries = _some(splits.train, count), _some(splits.holdout, max(1, count // 4))

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        (bank, labels), (queries, truth) = self._features(self.bank), self._features(self.queries)
        predicted = knn_predict(bank, labels, queries, [self.K], self.classes)[self.K]
        return {"knn_holdout": accuracy(predicted, truth)}, {}

    def _features(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        poll = self.session.stop.poll if self.session.world.size == 1 else lambda: None
        found = [
            (self.encoder(batch.images).cpu(), batch.labels.cpu())
            for batch in in_order(images, 256, self.session.world.device, self.session.config["data"]["workers"], poll)
        ]
        return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def _some(images: ImageSet, count: int) -> ImageSet:
    return images.subset(permutation(0, 0, len(images))[:count].sort().values.numpy())

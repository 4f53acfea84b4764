"""Evaluate a network during pretraining: preview batches, the online kNN and the online linear probe."""

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
from linear_probe.features import Features
from linear_probe.knn import accuracy, knn_predict
from linear_probe.linear import ridge_predict

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
        linear: score a linear probe on the same images and features too, by ridge regression in closed form.
        geometry_images: training images for the measures without labels; 0 for none. Each is encoded 11 times.
        levels: measure the loss on the panels' images by noise level.
        cka: measure the similarity of layers on the panels' images.
        maps: draw attention and principal components of the patch tokens of the panels' images.
    """

    num_evals: Natural
    panel_images: Count
    knn_images: Natural | None
    patience: Count | None = None
    linear: bool = False
    geometry_images: Natural = 0
    levels: bool = False
    cka: bool = False
    maps: bool = False

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


def some(images: ImageSet, count: int) -> ImageSet:
    """Return `count` random images of a set, the same in every call, or the whole set if it is smaller."""
    return images.subset(permutation(0, 0, len(images))[:count].sort().values.numpy())


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches."""
    fields = ([getattr(b, name) for b in batches] for name in ("images", "labels", "index", "latents", "masks"))
    return Batch(*(None if values[0] is None else torch.cat(values) for values in fields))  # type: ignore[arg-type]


def encoder_of(session: Session, objective: PretrainingObjective) -> Encoder:
    """Return the encoder of an objective in training, in the training's precision."""
    return Encoder(objective, precision=session.config["train"]["precision"])


class OnlineFeatures:
    """Mean tokens of training and hold-out images at a step, read once for all probes; no image of test is read.

    Args:
        session: device, data and config.
        objective: objective in training.
        splits: train is the bank, the hold-out the queries.
        count: maximum of training images in the bank; half as many hold-out images are queries.
        start: function that returns the objective before its first step; None without.
    """

    def __init__(
        self,
        session: Session,
        objective: PretrainingObjective,
        splits: Splits,
        count: int,
        start: Callable[[], PretrainingObjective] | None,
    ):
        self.session, self.start, self.classes = session, start, len(splits.classes)
        self.encoder = encoder_of(session, objective)
        self.bank, self.queries = some(splits.train, count), some(splits.holdout, max(1, count // 2))
        self._read: tuple[int, Features, Features] | None = None
        self._untrained: tuple[Features, Features] | None = None

    def at(self, step: int) -> tuple[Features, Features]:
        """Return bank and queries of the network at the step of an evaluation."""
        if self._read is None or self._read[0] != step:
            self._read = (step, self._features(self.encoder, self.bank), self._features(self.encoder, self.queries))
        return self._read[1:]

    def untrained(self) -> tuple[Features, Features] | None:
        """Return bank and queries of the network before its first step, `undo_zero_init` applied; None without one."""
        if self._untrained is None and self.start is not None:
            with torch.random.fork_rng():
                objective = self.start()
            objective.network.undo_zero_init()
            objective.eval().to(self.session.world.device)
            encoder = encoder_of(self.session, objective)
            self._untrained = self._features(encoder, self.bank), self._features(encoder, self.queries)
        return self._untrained

    def _features(self, encoder: Encoder, images: ImageSet) -> Features:
        poll = self.session.stop.poll if self.session.world.size == 1 else lambda: None
        pairs = [
            (encoder(batch.images).cpu(), batch.labels.cpu())
            for batch in in_order(images, 250, self.session.world.device, self.session.config["data"]["workers"], poll)
        ]
        return Features(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))


# (bank, queries, classes) -> predicted classes of the queries
Predict = Callable[[Features, Features, int], Tensor]
K = 20  # neighbours
ONLINE_KNN = "knn"  # name of the online kNN in the rows of metrics.jsonl


def predict_knn(bank: Features, queries: Features, classes: int) -> Tensor:
    """Predict by the nearest neighbours (linear_probe.knn)."""
    return knn_predict(bank.x, bank.y, queries.x, [K], classes)[K]


def predict_linear(bank: Features, queries: Features, classes: int) -> Tensor:
    """Predict by ridge regression (linear_probe.linear)."""
    return ridge_predict(bank.x, bank.y, queries.x)


class OnlineProbe:
    """Measure the accuracy of the hold-out on the encoder's mean tokens, by a classifier fitted on training images.

    Two references need no training: the most frequent class (`chance`), and the same network before its first step with
    `undo_zero_init` applied (`untrained`, as in the probe's table). At step 0 the blocks are the identity, so the first
    accuracy is that of the patch embedding.

    Args:
        name: `knn` or `linear`.
        title: name in the progress report.
        features: features of a step, shared with other probes.
        predict: the classifier.
        every: steps between evaluations.
    """

    def __init__(self, name: str, title: str, features: OnlineFeatures, predict: Predict, every: int):
        self.name, self.title, self.features, self.predict, self.every = name, title, features, predict, every
        self.baselines: dict[str, float] | None = None

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        if self.baselines is None:
            self.baselines = self._baselines()
        return {f"{self.name}_holdout/model": self._accuracy(*self.features.at(step)), **self.baselines}, {}

    def headline(self, scalars: Mapping[str, float]) -> str:
        """Return a sentence on the accuracies."""
        key = f"{self.name}_holdout"
        names = [name for name in ("untrained", "chance") if f"{key}/{name}" in scalars]
        baselines = ", ".join(f"{name} {scalars[f'{key}/{name}']:.1f}" for name in names)
        return f"{self.title} hold-out {scalars[f'{key}/model']:.1f} % ({baselines})"

    def _baselines(self) -> dict[str, float]:
        commonest = self.features.bank.own_labels.mode().values
        truth = self.features.queries.own_labels
        baselines = {f"{self.name}_holdout/chance": 100 * (truth == commonest).double().mean().item()}
        if (untrained := self.features.untrained()) is not None:
            baselines[f"{self.name}_holdout/untrained"] = self._accuracy(*untrained)
        return baselines

    def _accuracy(self, bank: Features, queries: Features) -> float:
        return accuracy(self.predict(bank, queries, self.features.classes), queries.y)


def online_probes(features: OnlineFeatures, settings: MonitorSettings, every: int) -> list[OnlineProbe]:
    """Return the online kNN, and the online linear probe if it is switched on."""
    probes = [OnlineProbe(ONLINE_KNN, "kNN", features, predict_knn, every)]
    if settings.linear:
        probes.append(OnlineProbe("linear", "linear", features, predict_linear, every))
    return probes

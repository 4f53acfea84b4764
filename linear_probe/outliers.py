"""Detect images of another data set by their features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linear_probe.features import FeatureKey, Features, Source
from linear_probe.knn import nearest
from linear_probe.protocols import KNN, LBFGS, Choice, Evaluation, Protocol, joined
from linear_probe.subsets import OUTLIERS, Part

NEIGHBOUR = 50  # arXiv 2204.06507 has it for CIFAR-10
ACCEPTED = 0.95  # of the images of the data set, at the threshold of FPR95


class OutlierDetection(Protocol):
    """Detection of images of another data set (`Part(OUTLIERS)`) by a score of how unusual their features are.

    No outlier is seen before the evaluation: feature key and setting are those that classify the hold-out best under
    `classifier`. The measure is the AUROC, whose value of one image is the fraction of outliers with a higher score
    (of equal ones, half); the other is FPR95, the fraction of outliers below the score that 95 % of the images are
    below; lower is better.
    """

    measure = "AUROC"
    needs_outliers = True
    classifier: Protocol

    @abstractmethod
    def unusual(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int) -> Tensor:
        """Return a score (N,) of features `x`, (N, D): the higher, the less like those of `fit`."""

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score every setting of the classifier, fitted on `train`, by its accuracy on `holdout`."""
        return self.classifier.sweep(train, holdout, classes, seed)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the classes (N,) of features by the classifier."""
        return self.classifier.predict(setting, fit, x, classes, seed)

    def evaluate(
        self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int
    ) -> Evaluation:
        """Raise ValueError: a source with outliers is needed."""
        raise ValueError(f"{self.name} needs outliers beside the images of the data set; see evaluate_source")

    def evaluate_source(
        self,
        source: Source,
        feature_key: FeatureKey,
        setting: Mapping[str, Any],
        fits: Sequence[Part],
        scored: Sequence[Part],
        classes: int,
        seed: int,
    ) -> Evaluation:
        """Return the scores of the images of `scored` against the outliers of the source."""
        fit = joined(*(source.features(part, feature_key) for part in fits))
        x = torch.cat([source.features(part, feature_key).x for part in scored])
        outliers = source.features(Part(OUTLIERS), feature_key).x
        scores = self.unusual(setting, fit, torch.cat([x, outliers]), classes)
        return detection(scores[: len(x)], scores[len(x) :])


class NeighbourDistance(OutlierDetection):
    """Detection by the distance to the k-th nearest training image, of normalised features (arXiv 2204.06507).

    Args:
        neighbour: k, cut to the number of training images.
    """

    name = "ood_knn"

    def __init__(self, neighbour: int = NEIGHBOUR):
        self.neighbour, self.classifier = neighbour, KNN()
        self.source = (
            f"cosine distance to the {neighbour}th nearest training image (arXiv 2204.06507); features of the layer "
            "that is best under knn"
        )

    def unusual(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int) -> Tensor:
        """Return one minus the cosine similarity to the k-th nearest features, (N,)."""
        similarity, _ = nearest(fit.x, x, min(self.neighbour, len(fit)))
        return 1 - similarity[:, -1]


class Energy(OutlierDetection):
    """Detection by the energy -log sum exp of the logits of a linear classifier (Eq. 4, arXiv 2010.03759)."""

    name = "ood_energy"
    source = "energy of the logits of lbfgs at temperature 1 (arXiv 2010.03759)"

    def __init__(self) -> None:
        self.linear = LBFGS()
        self.classifier = self.linear

    def unusual(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int) -> Tensor:
        """Return the energy (N,)."""
        return -self.linear.logits(setting, fit, x, classes).logsumexp(1)


def detection(images: Tensor, outliers: Tensor) -> Evaluation:
    """Return AUROC, image by image, and FPR95 of scores.

    Args:
        images: (N,) scores of images of the data set.
        outliers: (M,) scores of others, which should be higher.
    """
    ordered = outliers.double().sort().values
    x = images.double()
    below = torch.searchsorted(ordered, x)  # number of outliers with lower scores
    not_above = torch.searchsorted(ordered, x, right=True)
    per_image = 1 - (below + not_above).double() / (2 * len(ordered))
    threshold = x.sort().values[max(0, -(-int(ACCEPTED * 100) * len(x) // 100) - 1)]
    return Evaluation(per_image, {"FPR95": 100 * float((ordered <= threshold).double().mean())})

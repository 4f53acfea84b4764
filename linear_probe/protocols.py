"""Define protocols: classifiers of frozen features, with the selection of their settings.

Every protocol selects its setting on the hold-out and is then fitted once on train and hold-out together; only that
fit is scored on the test split.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from linear_probe.calibration import calibration_error
from linear_probe.features import FeatureKey, Features, Source
from linear_probe.heads import HeadRecipe, train_heads
from linear_probe.knn import accuracy, knn_predict
from linear_probe.linear import Logistic, logits, predict
from linear_probe.scaling import standardiser, whitener
from linear_probe.subsets import Part, Plan


@dataclass(frozen=True)
class Choice:
    """Setting of a protocol with its accuracy on the images of the selection.

    Attributes:
        setting: {hyper-parameter: value}.
        accuracy: percent.
    """

    setting: Mapping[str, Any]
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of images under a protocol.

    Attributes:
        per_image: (N,) float64 in [0, 1], whose mean is the protocol's measure: 1 for each image classified correctly.
        further: {name: percent}, other measures of the same images.
    """

    per_image: Tensor
    further: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Return the measure in percent."""
        return 100 * float(self.per_image.mean())


class Protocol(ABC):
    """Protocol that scores features.

    Attributes:
        name: name in result lines.
        source: the paper and every deviation from it.
        measure: what is measured, in percent; higher is better.
        needs_outliers: images of another data set are needed beside the scored ones.
    """

    name: str
    source: str
    measure = "accuracy"
    needs_outliers = False

    @abstractmethod
    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score every setting, fitted on `train`, on `holdout`; the order of the settings is fixed."""

    @abstractmethod
    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the classes (N,) of features `x`, (N, D), under one setting fitted on `fit`."""

    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        """Return the setting that is best on `holdout`, fitted on `train`."""
        return max(self.sweep(train, holdout, classes, seed), key=lambda c: c.accuracy)

    def evaluate(
        self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int
    ) -> Evaluation:
        """Return the scores of `test` under one setting fitted on `fit`."""
        return correctness(self.predict(setting, fit, test.x, classes, seed), test.y)

    def sweep_source(
        self, source: Source, fit: Part, held: Part, classes: int, seed: int
    ) -> dict[FeatureKey, list[Choice]]:
        """Score every setting at every feature key of a source, fitted on `fit`, on `held`."""
        return {
            feature_key: self.sweep(
                source.features(fit, feature_key), source.features(held, feature_key), classes, seed
            )
            for feature_key in source.feature_keys
        }

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
        """Return the scores of the images of `scored`, in order, fitted on the union of `fits`, at one feature key."""
        fit, test = (joined(*(source.features(part, feature_key) for part in parts)) for parts in (fits, scored))
        return self.evaluate(setting, fit, test, classes, seed)

    def num_encodings(self, source: Source, fits: Sequence[Part]) -> int:
        """Return the number of images that one fit encodes in addition to the cached features."""
        return 0


def correctness(predicted: Tensor, truth: Tensor) -> Evaluation:
    """Return which images were classified correctly, from predicted classes (N,) and labels (N,)."""
    return Evaluation((predicted == truth).double())


def joined(*parts: Features) -> Features:
    """Concatenate features, without a copy where they are adjacent in memory."""
    if len(parts) == 1:
        return parts[0]
    return Features(_joined([part.x for part in parts]), torch.cat([part.y for part in parts]))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    first, at = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == at):
            return torch.cat(list(parts))
        at += part.numel()
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride(), first.storage_offset())


class LBFGS(Protocol):
    """Multinomial logistic regression on standardised features, with the L2 penalty selected on the hold-out.

    Args:
        penalties: candidate penalties, descending, > 0.
    """

    name = "lbfgs"
    source = "standardised features, multinomial logistic regression, L2 penalty chosen among 6"

    def __init__(self, penalties: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        self.penalties = penalties

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score every penalty, fitted on `train`, on `holdout`; warm-start each from the next stronger one."""
        scale, theta, choices = standardiser(train.x), None, []
        model, held = Logistic(scale(train.x), train.y, classes), scale(holdout.x)
        for penalty in self.penalties:
            theta = model.fit(penalty, theta)
            choices.append(Choice({"penalty": penalty}, accuracy(predict(theta, held), holdout.y)))
        return choices

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the classes (N,) of features `x`, (N, D), under one penalty, from weights 0."""
        return self.logits(setting, fit, x, classes).argmax(1)

    def logits(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int) -> Tensor:
        """Return the logits (N, C) of features `x`, (N, D), under one penalty, from weights 0."""
        scale = standardiser(fit.x)
        model = Logistic(scale(fit.x), fit.y, classes)
        return logits(model.fit(setting["penalty"]), scale(x))

    def evaluate(
        self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int
    ) -> Evaluation:
        """Return which images of `test` are classified correctly, and the calibration error of the probabilities."""
        scores = self.logits(setting, fit, test.x, classes)
        error = 100 * calibration_error(scores.softmax(1), test.y)
        return replace(correctness(scores.argmax(1), test.y), further={"calibration error": error})


class KNN(Protocol):
    """k nearest neighbours with cosine similarity and weights exp(s / 0.07), k selected among 10, 20, 50, 100, 200.

    Args:
        whiten: whiten features first, by their moments on the training set.
    """

    KS = (10, 20, 50, 100, 200)

    def __init__(self, whiten: bool = False):
        self.whiten = whiten
        self.name = "knn_whitened" if whiten else "knn"
        scaling = "whitened" if whiten else "raw"
        self.source = f"cosine similarity of {scaling} features, T = 0.07 (arXiv 1805.01978), k chosen among {self.KS}"

    def _predict(self, fit: Features, x: Tensor, ks: Sequence[int], classes: int) -> dict[int, Tensor]:
        scale = whitener(fit.x) if self.whiten else None
        return knn_predict(fit.x, fit.y, x, ks, classes, scale=scale)

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score every k, with `train` as the bank, on `holdout`."""
        predictions = self._predict(train, holdout.x, self.KS, classes)
        return [Choice({"k": k}, accuracy(predicted, holdout.y)) for k, predicted in predictions.items()]

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the classes (N,) of features `x`, (N, D), under one k."""
        return self._predict(fit, x, [setting["k"]], classes)[setting["k"]]


class SGDHeads(Protocol):
    """Linear heads trained by SGD, one for each learning rate; the rate is selected on the hold-out.

    Args:
        name: name in result lines.
        source: the paper and every deviation from it.
        recipe: hyper-parameters; its rates are the candidates.
    """

    def __init__(self, name: str, source: str, recipe: HeadRecipe):
        self.name, self.source, self.recipe = name, source, recipe

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score the head of every rate, trained on `train`, on `holdout`."""
        heads = train_heads(train.x, train.y, classes, self.recipe, seed)
        return score_rates(self.recipe, heads.predict(holdout.x), holdout.y)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the classes (N,) of features `x`, (N, D), by the head of one rate."""
        recipe = replace(self.recipe, rates=(setting["rate"],))
        return train_heads(fit.x, fit.y, classes, recipe, seed).predict(x)[0]


def score_rates(recipe: HeadRecipe, predicted: Tensor, truth: Tensor) -> list[Choice]:
    """Return the accuracy of each learning rate's head from predicted classes (R, N) and labels (N,)."""
    return [Choice({"rate": rate}, accuracy(p, truth)) for rate, p in zip(recipe.rates, predicted, strict=True)]


@dataclass(frozen=True)
class Chosen:
    """Selected feature key and setting of a protocol.

    Attributes:
        feature_key: selected features.
        choice: selected setting, with its accuracy.
        among: accuracy of each candidate feature key under its best setting, percent.
    """

    feature_key: FeatureKey
    choice: Choice
    among: Mapping[FeatureKey, float]


def choose(protocol: Protocol, source: Source, plan: Plan, classes: int, seed: int) -> Chosen:
    """Select feature key and setting by the mean accuracy over a plan's trials, weighted by the number of images."""
    trials = [protocol.sweep_source(source, fit, held, classes, seed) for fit, held in plan.trials]
    sizes = [source.count([held]) for _, held in plan.trials]
    best = {
        feature_key: max(_averaged([t[feature_key] for t in trials], sizes), key=lambda c: c.accuracy)
        for feature_key in source.feature_keys
    }
    feature_key = max(best, key=lambda c: best[c].accuracy)
    return Chosen(feature_key, best[feature_key], {c: choice.accuracy for c, choice in best.items()})


def _averaged(trials: Sequence[Sequence[Choice]], sizes: Sequence[int]) -> list[Choice]:
    """Return the weighted mean accuracy of each setting over trials."""
    weights = [size / sum(sizes) for size in sizes]
    return [
        Choice(same[0].setting, sum(c.accuracy * weight for c, weight in zip(same, weights, strict=True)))
        for same in zip(*trials, strict=True)
    ]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

"""Named protocols: what is fitted on frozen features, what is chosen, and how.

Every protocol chooses among its settings on the hold-out and is then fitted once on train and hold-out
together; only that one fit meets the test split.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from linear_probe.features import FeatureKey, Features, Source
from linear_probe.heads import HeadRecipe, train_heads
from linear_probe.knn import accuracy, knn_predict
from linear_probe.linear import Logistic, predict
from linear_probe.scaling import standardiser, whitener
from linear_probe.subsets import Part, Plan


@dataclass(frozen=True)
class Choice:
    """A setting of a protocol and its accuracy where the choice is made, in percent."""

    setting: Mapping[str, Any]
    accuracy: float


class Protocol(ABC):
    """A way to score features.

    Attributes:
        name: as written in result lines.
        source: where it is from and how it deviates.
    """

    name: str
    source: str

    @abstractmethod
    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Every setting when fitted on `train` and scored on `holdout`, always in the same order."""

    @abstractmethod
    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Classes (N,) of `x`, (N, D), under one setting fitted on `fit`."""

    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        """The best setting when fitted on `train` and scored on `holdout`."""
        return max(self.tried(train, holdout, classes, seed), key=lambda c: c.accuracy)

    def score(self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int) -> float:
        """Accuracy on `test` in percent, under one setting fitted on `fit`."""
        return accuracy(self.predict(setting, fit, test.x, classes, seed), test.y)

    def tried_at(
        self, source: Source, fit: Part, held: Part, classes: int, seed: int
    ) -> dict[FeatureKey, list[Choice]]:
        """`tried` for every cell of a source."""
        return {
            feature_key: self.tried(
                source.features(fit, feature_key), source.features(held, feature_key), classes, seed
            )
            for feature_key in source.feature_keys
        }

    def scored(
        self,
        source: Source,
        feature_key: FeatureKey,
        setting: Mapping[str, Any],
        fits: Sequence[Part],
        requested: Part,
        classes: int,
        seed: int,
    ) -> float:
        """`score` on one part, fitted on several together, all read at one cell."""
        held = source.features(requested, feature_key)
        return self.score(setting, joined(*(source.features(part, feature_key) for part in fits)), held, classes, seed)

    def encodings(self, source: Source, fits: Sequence[Part]) -> int:
        """Return the number of images that one fit encodes beyond those whose features are kept."""
        return 0


def joined(*found: Features) -> Features:
    """Sets of features, one after the other: without a copy where they lie so in memory."""
    if len(found) == 1:
        return found[0]
    return Features(_joined([f.x for f in found]), torch.cat([f.y for f in found]))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    first, at = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == at):
            return torch.cat(list(parts))
        at += part.numel()
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride(), first.storage_offset())


class LBFGS(Protocol):
    """Multinomial logistic regression on standardised features, its L2 penalty chosen on the hold-out."""

    name = "lbfgs"
    source = "standardised features, multinomial logistic regression, L2 penalty chosen among 6"

    def __init__(self, penalties: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        self.penalties = penalties

    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        scale, theta, found = standardiser(train.x), None, []
        model, held = Logistic(scale(train.x), train.y, classes), scale(holdout.x)
        for penalty in self.penalties:  # from the strongest, each the start of the next
            theta = model.fit(penalty, theta)
            found.append(Choice({"penalty": penalty}, accuracy(predict(theta, held), holdout.y)))
        return found

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        scale = standardiser(fit.x)
        model = Logistic(scale(fit.x), fit.y, classes)
        return predict(model.fit(setting["penalty"]), scale(x))


class KNN(Protocol):
    """Nearest neighbours with cosine similarity, votes weighted by exp(s / 0.07), k chosen among 10, 20, 50, 100, 200.

    Args:
        whiten: features are whitened first, by their moments on the training set.
    """

    KS = (10, 20, 50, 100, 200)

    def __init__(self, whiten: bool = False):
        self.whiten = whiten
        self.name = "knn_whitened" if whiten else "knn"
        kind = "whitened" if whiten else "raw"
        self.source = f"cosine similarity of {kind} features, T = 0.07 (arXiv 1805.01978), k chosen among {self.KS}"

    def _voted(self, fit: Features, x: Tensor, ks: Sequence[int], classes: int) -> dict[int, Tensor]:
        scale = whitener(fit.x) if self.whiten else None
        return knn_predict(fit.x, fit.y, x, ks, classes, scale=scale)

    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        found = self._voted(train, holdout.x, self.KS, classes)
        return [Choice({"k": k}, accuracy(predicted, holdout.y)) for k, predicted in found.items()]

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        return self._voted(fit, x, [setting["k"]], classes)[setting["k"]]


class SGDHeads(Protocol):
    """A linear head for each of several learning rates, trained side by side, the rate chosen on the hold-out.

    Args:
        name, source: for the result line.
        recipe: how the heads are trained; its rates are the choices.
    """

    def __init__(self, name: str, source: str, recipe: HeadRecipe):
        self.name, self.source, self.recipe = name, source, recipe

    def tried(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        heads = train_heads(train.x, train.y, classes, self.recipe, seed)
        return rated(self.recipe, heads.predict(holdout.x), holdout.y)

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        recipe = replace(self.recipe, rates=(setting["rate"],))
        return train_heads(fit.x, fit.y, classes, recipe, seed).predict(x)[0]


def rated(recipe: HeadRecipe, predicted: Tensor, truth: Tensor) -> list[Choice]:
    """The accuracy of each learning rate's head: its classes (R, N) held against (N,)."""
    return [Choice({"rate": rate}, accuracy(found, truth)) for rate, found in zip(recipe.rates, predicted, strict=True)]


@dataclass(frozen=True)
class Chosen:
    """A cell, the protocol's setting there, and what every cell had where the choice was made.

    Attributes:
        cell, choice: the best.
        among: accuracy of each cell under its best setting, percent.
    """

    feature_key: FeatureKey
    choice: Choice
    among: Mapping[FeatureKey, float]


def choose(protocol: Protocol, source: Source, plan: Plan, classes: int, seed: int) -> Chosen:
    """The best cell and setting by a plan's trials; each trial weighs as many images as it was scored on."""
    trials = [protocol.tried_at(source, fit, held, classes, seed) for fit, held in plan.trials]
    sizes = [source.count([held]) for _, held in plan.trials]
    best = {
        feature_key: max(_averaged([t[feature_key] for t in trials], sizes), key=lambda c: c.accuracy)
        for feature_key in source.feature_keys
    }
    feature_key = max(best, key=lambda c: best[c].accuracy)
    return Chosen(feature_key, best[feature_key], {c: choice.accuracy for c, choice in best.items()})


def _averaged(trials: Sequence[Sequence[Choice]], sizes: Sequence[int]) -> list[Choice]:
    """Each setting's accuracy over all trials."""
    shares = [size / sum(sizes) for size in sizes]
    return [
        Choice(same[0].setting, sum(c.accuracy * share for c, share in zip(same, shares, strict=True)))
        for same in zip(*trials, strict=True)
    ]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; no deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

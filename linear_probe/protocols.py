"""Named protocols: what is fitted on frozen features, what is chosen, and how.

Every protocol chooses among its settings on the hold-out and is then fitted once on train and hold-out
together; only that one fit meets the test split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from linear_probe.features import Features
from linear_probe.knn import accuracy, knn_predict
from linear_probe.linear import HeadRecipe, Logistic, predict, train_heads
from linear_probe.scaling import standardiser, whitener


@dataclass(frozen=True)
class Choice:
    """A setting of a protocol and its accuracy on the hold-out, in percent."""

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
    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        """The best setting when fitted on `train` and scored on `holdout`."""

    @abstractmethod
    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Classes (N,) of `x`, (N, D), under one setting fitted on `fit`."""

    def score(self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int) -> float:
        """Accuracy on `test` in percent, under one setting fitted on `fit`."""
        return accuracy(self.predict(setting, fit, test.x, classes, seed), test.y)


def joined(a: Features, b: Features) -> Features:
    """Both sets of features, one after the other."""
    return Features(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))


class LBFGS(Protocol):
    """Multinomial logistic regression on standardised features, its L2 penalty chosen on the hold-out."""

    name = "lbfgs"
    source = "standardised features, multinomial logistic regression, L2 penalty chosen among 6"

    def __init__(self, penalties: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        self.penalties = penalties

    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        scale, theta, found = standardiser(train.x), None, []
        model, held = Logistic(scale(train.x), train.y, classes), scale(holdout.x)
        for penalty in self.penalties:  # from the strongest, each the start of the next
            theta = model.fit(penalty, theta)
            found.append(Choice({"penalty": penalty}, accuracy(predict(theta, held), holdout.y)))
        return max(found, key=lambda c: c.accuracy)

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

    def _prepared(self, fit: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.whiten:
            return fit, x
        scale = whitener(fit)
        return scale(fit), scale(x)

    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        bank, queries = self._prepared(train.x, holdout.x)
        found = knn_predict(bank, train.y, queries, self.KS, classes)
        return max(
            (Choice({"k": k}, accuracy(predicted, holdout.y)) for k, predicted in found.items()),
            key=lambda c: c.accuracy,
        )

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        bank, queries = self._prepared(fit.x, x)
        return knn_predict(bank, fit.y, queries, [setting["k"]], classes)[setting["k"]]


class SGDHeads(Protocol):
    """A linear head for each of several learning rates, trained side by side, the rate chosen on the hold-out.

    Args:
        name, source: for the result line.
        recipe: how the heads are trained; its rates are the choices.
    """

    def __init__(self, name: str, source: str, recipe: HeadRecipe):
        self.name, self.source, self.recipe = name, source, recipe

    def select(self, train: Features, holdout: Features, classes: int, seed: int) -> Choice:
        heads = train_heads(train.x, train.y, classes, self.recipe, seed)
        found = [accuracy(predicted, holdout.y) for predicted in heads.predict(holdout.x)]
        best = max(range(len(found)), key=found.__getitem__)
        return Choice({"rate": self.recipe.rates[best]}, found[best])

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        recipe = replace(self.recipe, rates=(setting["rate"],))
        return train_heads(fit.x, fit.y, classes, recipe, seed).predict(x)[0]


CACHED = "features cached once, centre crop (no augmentation in probe training)"

MAE = SGDHeads(
    "mae",
    f"arXiv 2111.06377 Tab. 10: BatchNorm without affine, LARS, base rate 0.1, "
    f"batch 16384, 90 epochs, warm-up 10; {CACHED}",
    HeadRecipe((6.4,), batch=16384, epochs=90, rule="lars", warmup=1 / 9, batch_norm=True),
)
PAPER = SGDHeads(
    "paper",
    "arXiv 2401.14404 App. A: as MAE's; the printed rate 6.4e-3 is ambiguous, so LARS rates 6.4 x "
    f"{{0.001, ..., 10}} are swept; {CACHED}",
    HeadRecipe(
        (6.4e-3, 6.4e-2, 0.64, 2.0, 6.4, 20.0, 64.0), batch=16384, epochs=90, rule="lars", warmup=1 / 9, batch_norm=True
    ),
)
DINOV2 = SGDHeads(
    "dinov2",
    f"arXiv 2304.07193 App. B.3: SGD, 13 rates, 12,500 steps of 1024, on the last layer alone; {CACHED}",
    HeadRecipe(
        tuple(4 * r for r in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)),
        steps=12500,
        batch=1024,
    ),
)


PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (LBFGS(), KNN(), KNN(whiten=True), PAPER, MAE, DINOV2)}

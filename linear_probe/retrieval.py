"""Score features by retrieval: the images of a class are to be nearest to each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from linear_probe.features import Features
from linear_probe.knn import knn_predict
from linear_probe.protocols import Choice, Evaluation, Protocol

RECALL_AT = (1, 5, 10)
BLOCK = 1 << 23  # similarities that are computed at a time


class Retrieval(Protocol):
    """Ranking of the training images by cosine similarity to each scored image.

    The measure is the mean average precision over the scored images; images of the same class are relevant. Further
    ones are recall@k: the fraction of images that have one of their class among the k nearest.
    """

    name = "retrieval"
    source = "training images ranked by cosine similarity to each scored image, those of its class are relevant"
    measure = "mAP"

    def sweep(self, train: Features, holdout: Features, classes: int, seed: int) -> list[Choice]:
        """Score the features, with `train` as the gallery, on `holdout`."""
        return [Choice({}, self.evaluate({}, train, holdout, classes, seed).score)]

    def predict(self, setting: Mapping[str, Any], fit: Features, x: Tensor, classes: int, seed: int) -> Tensor:
        """Predict the class (N,) of the nearest image."""
        return knn_predict(fit.x, fit.y, x, [1], classes)[1]

    def evaluate(
        self, setting: Mapping[str, Any], fit: Features, test: Features, classes: int, seed: int
    ) -> Evaluation:
        """Return the average precision of each image of `test`, with `fit` as the gallery."""
        gallery, queries = F.normalize(fit.x, dim=1), F.normalize(test.x, dim=1)
        precisions, hits = [], []
        per_block = max(1, BLOCK // len(fit))
        for x, y in zip(queries.split(per_block), test.y.split(per_block), strict=True):
            for ranking in rankings(x @ gallery.T, fit.y == y[:, None]):
                precisions.append(average_precision(*ranking))
                hits.append([recall(*ranking, k) for k in RECALL_AT])
        means = (100 * np.mean(hits, axis=0)).tolist()
        return Evaluation(
            torch.tensor(precisions, dtype=torch.float64),
            {f"recall@{k}": mean for k, mean in zip(RECALL_AT, means, strict=True)},
        )


def rankings(scores: Tensor, relevant: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each query all scores and those of the relevant entries, (N,) and (R,), both ascending.

    NumPy sorts numbers alone, by vector instructions, in a tenth of the time that torch's sort takes, which carries
    positions.

    Args:
        scores: (B, N).
        relevant: (B, N) bool.
    """
    for row, chosen in zip(scores.numpy(), relevant.numpy(), strict=True):
        yield np.sort(row), np.sort(row[chosen])


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Return the average precision of a ranking, in [0, 1]; 0 where nothing is relevant.

    sum_n (R_n - R_{n-1}) P_n with precision P_n and recall R_n at the n-th distinct score, as scikit-learn has it:
    entries of equal scores count at once, so that constant features have the precision of a random order.

    Args:
        scores: (N,) of all entries, ascending.
        relevant: (R,) of the relevant ones, ascending.
    """
    if not len(relevant):
        return 0.0
    no_lower = len(relevant) - np.searchsorted(relevant, relevant)  # relevant entries of no lower score
    return float(np.mean(no_lower / (len(scores) - np.searchsorted(scores, relevant))))


def recall(scores: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Return the probability that a relevant entry is among the first k of a ranking.

    Entries of equal scores come in random order: among them, j of the n are within the first k, and all of the m
    relevant ones miss with the probability C(n - m, j) / C(n, j).

    Args:
        scores: (N,) of all entries, ascending.
        relevant: (R,) of the relevant ones, ascending.
        k: number of entries, cut to N.
    """
    k = min(k, len(scores))
    last = scores[-k]
    low, high = np.searchsorted(relevant, last), np.searchsorted(relevant, last, side="right")
    if high < len(relevant):
        return 1.0
    first, end = np.searchsorted(scores, last), np.searchsorted(scores, last, side="right")
    n, m, j = int(end - first), int(high - low), k - int(len(scores) - end)
    return 1 - math.comb(n - m, j) / math.comb(n, j)

"""Score features by retrieval: the images of a class are to be nearest to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linear_probe.features import Features
from linear_probe.knn import knn_predict
from linear_probe.protocols import Choice, Evaluation, Protocol

RECALL_AT = (1, 5, 10)
BLOCK = 1 << 23  # similarities that are sorted at a time


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
            relevant = fit.y == y[:, None]
            similarity, order = (x @ gallery.T).sort(descending=True)
            ranked = relevant.gather(1, order)
            precisions.append(average_precision(similarity, ranked))
            hits.append(recalls(similarity, ranked, RECALL_AT))
        means = (100 * torch.cat(hits).mean(0)).tolist()
        return Evaluation(
            torch.cat(precisions), {f"recall@{k}": mean for k, mean in zip(RECALL_AT, means, strict=True)}
        )


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the average precision of rankings, (B,) float64 in [0, 1]; 0 where nothing is relevant.

    sum_n (R_n - R_{n-1}) P_n with precision P_n and recall R_n at the n-th distinct score, as scikit-learn has it:
    entries of equal scores count at once, so that constant features have the precision of a random order.

    Args:
        scores: (B, N), descending.
        relevant: (B, N) bool, in the same order.
    """
    count = scores.shape[1]
    retrieved = relevant.double().cumsum(1)
    last = tie_ends(scores)
    precision = (retrieved / torch.arange(1, count + 1)).gather(1, last)
    return (precision * relevant).sum(1) / retrieved[:, -1].clamp(min=1)


def recalls(scores: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Return the probability that a relevant entry is among the first k of each ranking, (B, len(ks)) float64.

    Entries of equal scores come in random order: among them, j of the n are within the first k, and all of the m
    relevant ones miss with the probability C(n - m, j) / C(n, j).

    Args:
        scores: (B, N), descending.
        relevant: (B, N) bool, in the same order.
        ks: numbers of entries, cut to N.
    """
    columns, count = [], scores.shape[1]
    ends, positions = tie_ends(scores), torch.arange(count)
    for k in (min(k, count) for k in ks):
        end = ends[:, k - 1 : k]
        tied = (scores == scores[:, k - 1 : k]).double()
        before = (relevant & (tied == 0) & (positions < k)).any(1)
        n, m = tied.sum(1), (tied * relevant).sum(1)
        j = k - (end[:, 0] + 1 - n)  # of the tied entries, those within the first k
        missed = torch.exp(_log_choose(n - m, j) - _log_choose(n, j))
        missed = torch.where(n - m >= j, missed, 0.0)
        columns.append(torch.where(before, 1.0, 1 - missed))
    return torch.stack(columns, 1)


def tie_ends(scores: Tensor) -> Tensor:
    """Return the position of the last entry of the same score, (B, N) int64, of descending scores (B, N)."""
    count = scores.shape[1]
    ends = F.pad(scores[:, 1:] != scores[:, :-1], (0, 1), value=True)
    last = torch.where(ends, torch.arange(count), count)
    return last.flip(1).cummin(1).values.flip(1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    valid = n.clamp(min=0)
    return torch.lgamma(valid + 1) - torch.lgamma(k + 1) - torch.lgamma((valid - k).clamp(min=0) + 1)

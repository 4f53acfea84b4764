"""Whether images are of clear and of many classes (arXiv 1606.03498)."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) (Sec. 4 there), its mean and standard deviation over parts of the set.

    1 where all images are classified alike, K where each is surely of one of K equally frequent classes.

    Args:
        probabilities: (N, K), rows that sum to 1; by Inception-v3 for the score of that name.
        splits: consecutive parts of the set, each with a p(y) of its own.
    """
    scores = torch.stack([_score(part) for part in probabilities.double().tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp()

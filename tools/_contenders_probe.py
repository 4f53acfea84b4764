"""Probes against their peers, on features made up of classes (see _interleaved.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from linear_probe.heads import train_heads
from linear_probe.knn import knn_predict
from linear_probe.linear import Logistic
from linear_probe.registry import DINOV2
from linear_probe.scaling import standardiser

Work = tuple[Callable[[], object], float]
CLASSES, TEMPERATURE = 10, 0.07
PENALTY = 1e-3  # of the logistic regressions


def made_up(count: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and classes (N,): normal, the class means a third as far apart as the classes are wide."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, dimensions, generator=torch.Generator().manual_seed(0)) / 3
    y = torch.randint(CLASSES, (count,), generator=generator)
    return means[y] + torch.randn(count, dimensions, generator=generator), y


def knn(bank: int, queries: int, dimensions: int, k: int) -> Work:
    """Ours."""
    (x, y), (q, _) = made_up(bank, dimensions, 1), made_up(queries, dimensions, 2)
    return lambda: knn_predict(x, y, q, [k], CLASSES, TEMPERATURE), queries


def knn_faiss(bank: int, queries: int, dimensions: int, k: int) -> Work:
    """faiss IndexFlatIP, filled and searched; the vote on top."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    (x, y), (q, _) = made_up(bank, dimensions, 1), made_up(queries, dimensions, 2)

    def predict() -> Tensor:
        index = faiss.IndexFlatIP(dimensions)
        index.add(F.normalize(x, dim=1).numpy())
        similarity, rows = index.search(F.normalize(q, dim=1).numpy(), k)
        weight, label = torch.exp(torch.from_numpy(similarity) / TEMPERATURE), y[torch.from_numpy(rows)]
        return torch.zeros(queries, CLASSES).scatter_add_(1, label, weight).argmax(1)

    return predict, queries


def knn_sklearn(bank: int, queries: int, dimensions: int, k: int) -> Work:
    """scikit-learn's KNeighborsClassifier, brute force, cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (q, _) = made_up(bank, dimensions, 1), made_up(queries, dimensions, 2)

    def weights(far: np.ndarray) -> np.ndarray:
        return np.exp((1 - far) / TEMPERATURE)

    model = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine")
    return lambda: model.fit(x.numpy(), y.numpy()).predict(q.numpy()), queries


def sweep(images: int, dimensions: int, epochs: float, together: bool) -> Work:
    """DINOv2's 13 rates, all in one pass or one after the other."""
    x, y = made_up(images, dimensions, 1)
    recipe = replace(DINOV2.recipe, steps=None, epochs=epochs)
    recipes = [recipe] if together else [replace(recipe, rates=(rate,)) for rate in recipe.rates]
    return lambda: [train_heads(x, y, CLASSES, r) for r in recipes], images * len(DINOV2.recipe.rates)


def lbfgs(images: int, dimensions: int) -> Work:
    """Ours."""
    x, y = made_up(images, dimensions, 1)
    scaled = standardiser(x)(x)
    return lambda: Logistic(scaled, y, CLASSES).fit(PENALTY), images


def lbfgs_sklearn(images: int, dimensions: int) -> Work:
    """scikit-learn's LogisticRegression, the same objective, its own tolerance."""
    from sklearn.linear_model import LogisticRegression

    x, y = made_up(images, dimensions, 1)
    scaled = standardiser(x)(x).numpy()
    model = LogisticRegression(C=1 / (images * PENALTY), max_iter=500)
    return lambda: model.fit(scaled, y.numpy()), images

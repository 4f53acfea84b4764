"""Probe synthetic features with l-DAE, faiss and scikit-learn (timed by interleaved.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from competitors import DEVICE, Work
from torch import Tensor
from torch.nn import functional as F

from ldae.app.compose import compose, resolved
from ldae.app.session import Session
from ldae.data.images import MemoryImages
from ldae.data.loader import in_order
from ldae.engine.precision import PrecisionName
from ldae.export.encoder import Encoder
from ldae.objectives.denoise import Denoise
from linear_probe.features import FeatureKey, extract
from linear_probe.heads import train_heads
from linear_probe.knn import accuracy, knn_predict
from linear_probe.linear import Logistic
from linear_probe.registry import DINOV2
from linear_probe.scaling import standardiser

CLASSES, TEMPERATURE = 10, 0.07
PENALTY = 1e-3  # of the logistic regressions


def draw_class_features(count: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features (N, D) and classes (N,): normal, the class means a third as far apart as the classes are wide."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, dimensions, generator=torch.Generator().manual_seed(0)) / 3
    y = torch.randint(CLASSES, (count,), generator=generator)
    return means[y] + torch.randn(count, dimensions, generator=generator), y


def knn(bank: int, queries: int, dimensions: int, k: int) -> Work:
    """Predict with kNN of linear_probe."""
    (x, y), (q, _) = draw_class_features(bank, dimensions, 1), draw_class_features(queries, dimensions, 2)
    return lambda: knn_predict(x, y, q, [k], CLASSES, TEMPERATURE), queries


def knn_faiss(bank: int, queries: int, dimensions: int, k: int) -> tuple[Callable[[], Tensor], float]:
    """Predict with faiss IndexFlatIP, filled and searched; the vote on top."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    (x, y), (q, _) = draw_class_features(bank, dimensions, 1), draw_class_features(queries, dimensions, 2)

    def predict() -> Tensor:
        index = faiss.IndexFlatIP(dimensions)
        index.add(F.normalize(x, dim=1).numpy())
        similarity, rows = index.search(F.normalize(q, dim=1).numpy(), k)
        weight, label = torch.exp(torch.from_numpy(similarity) / TEMPERATURE), y[torch.from_numpy(rows)]
        return torch.zeros(queries, CLASSES).scatter_add_(1, label, weight).argmax(1)

    return predict, queries


def knn_sklearn(bank: int, queries: int, dimensions: int, k: int) -> Work:
    """Predict with scikit-learn's KNeighborsClassifier, brute force, cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (q, _) = draw_class_features(bank, dimensions, 1), draw_class_features(queries, dimensions, 2)

    def weights(far: np.ndarray) -> np.ndarray:
        return np.exp((1 - far) / TEMPERATURE)

    model = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine")
    return lambda: model.fit(x.numpy(), y.numpy()).predict(q.numpy()), queries


def sweep(images: int, dimensions: int, epochs: float, together: bool) -> Work:
    """Train heads at DINOv2's 13 rates, all in one pass or one after the other."""
    x, y = draw_class_features(images, dimensions, 1)
    recipe = replace(DINOV2.recipe, steps=None, epochs=epochs)
    recipes = [recipe] if together else [replace(recipe, rates=(rate,)) for rate in recipe.rates]
    return lambda: [train_heads(x, y, CLASSES, r) for r in recipes], images * len(DINOV2.recipe.rates)


def extraction(images: int, bare: bool, precision: PrecisionName) -> Work:
    """Extract features of images of 32 px by l-DAE's encoder half, in batches of 128.

    Args:
        bare: the network alone, on its input at hand; else all that ldae probe does, from bytes to a file.
    """
    objective = Session(resolved(compose("pretrain", ["experiment=ldae/cifar10_cpu"]))).parts.objective
    assert isinstance(objective, Denoise)
    objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    encoder = Encoder(objective.eval().to(DEVICE), precision=precision)
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    held = MemoryImages.of(Path(), pixels, [str(i) for i in range(images)], np.zeros(images, np.int64))
    feature_key = FeatureKey(encoder.layer, encoder.t)
    level = objective.schedule.at(torch.full((1,), encoder.t, device=DEVICE))
    seen, _ = objective.encoder_input(torch.rand(128, 3, 32, 32, device=DEVICE), level, None)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(images // 128):
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                objective.denoiser.encode(seen, level, layers=[encoder.layer])

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract(
                lambda batch: {feature_key: encoder(batch.images)},
                [feature_key],
                in_order(held, 128, DEVICE),
                images,
                Path(folder) / "bank",
            )

    return (forward if bare else whole), images


def agreement(bank: int, queries: int, dimensions: int, k: int) -> float:
    """Return the percentage of predictions with bf16 candidates that equal those of faiss's exact search."""
    size = {"bank": bank, "queries": queries, "dimensions": dimensions, "k": k}
    (ours, _), (theirs, _) = knn(**size), knn_faiss(**size)
    predicted: Any = ours()
    return accuracy(predicted[k], theirs())


def draw_separable_features(count: int, dimensions: int, correlated: bool) -> tuple[Tensor, Tensor]:
    """Draw standardized features with a linear probe below 50 % accuracy; `correlated` as an encoder's are.

    The latter have a spectrum that falls as 1 / i, turned at random.
    """
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(CLASSES, dimensions, generator=generator) / 15
    y = torch.randint(CLASSES, (count,), generator=generator)
    x = means[y] + torch.randn(count, dimensions, generator=generator)
    if correlated:
        turned, _ = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator))
        x = x * torch.arange(1, dimensions + 1) ** -0.5 @ turned
    return standardiser(x)(x), y


def lbfgs(images: int, dimensions: int, correlated: bool) -> Work:
    """Fit with L-BFGS of linear_probe."""
    x, y = draw_separable_features(images, dimensions, correlated)
    return lambda: Logistic(x, y, CLASSES).fit(PENALTY), images


def lbfgs_sklearn(images: int, dimensions: int, correlated: bool) -> Work:
    """Fit with scikit-learn: the same objective at its default tolerance, which stops slightly above ours."""
    from sklearn.linear_model import LogisticRegression

    x, y = draw_separable_features(images, dimensions, correlated)
    model = LogisticRegression(C=1 / (images * PENALTY), max_iter=500)
    return lambda: model.fit(x.numpy(), y.numpy()), images

"""scikit-learn style classifiers on frozen features, with the algorithms of the protocols and fixed hyper-parameters.

All three pass scikit-learn's `check_estimator`. They compute in float32, so features that agree in 7 digits are equal;
they take no `sample_weight` and no sparse matrices.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from linear_probe.features import Features
from linear_probe.heads import HeadRecipe, train_heads
from linear_probe.knn import knn_predict
from linear_probe.linear import Logistic, predict
from linear_probe.scaling import standardiser, whitener


class FeatureClassifier(ClassifierMixin, BaseEstimator):
    """Base of the classifiers: checks arrays and maps class labels to indices 0..C-1 and back.

    Attributes:
        classes_: (C,) class labels, ascending.
        n_features_in_: D.
    """

    def _checked_fit(self, X: ArrayLike, y: ArrayLike) -> Features:
        """Return features (N, D) float32 and class indices (N,) int64."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        return Features(torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(indices.astype(np.int64)))

    def _checked_predict(self, X: ArrayLike) -> Tensor:
        """Return features (N, D) float32.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` has not been called.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return torch.from_numpy(np.ascontiguousarray(X))


class LogisticProbe(FeatureClassifier):
    """Multinomial logistic regression on standardised features by L-BFGS: the protocol `lbfgs` with a fixed penalty.

    Minimises the mean cross-entropy + penalty / 2 ||W||^2; biases are not penalised.

    Args:
        penalty: of the squared weights, > 0; scikit-learn's C is 1 / (N penalty).
        max_iter: iterations of L-BFGS at most.

    Attributes:
        scaling_: the map that standardises features, fitted on the training features.
        weights_: (D + 1, C) float32, the last row the biases.
        n_iter_: iterations that L-BFGS took.
    """

    def __init__(self, penalty: float = 1e-4, max_iter: int = 500):
        self.penalty = penalty
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> LogisticProbe:
        """Fit the weights to features X (N, D) and class labels y (N,)."""
        features = self._checked_fit(X, y)
        self.scaling_ = standardiser(features.x)
        model = Logistic(self.scaling_(features.x), features.y, len(self.classes_))
        self.weights_ = model.fit(self.penalty, iterations=self.max_iter)
        self.n_iter_ = model.n_iter
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class labels (N,) of features X (N, D)."""
        x = self._checked_predict(X)
        return self.classes_[predict(self.weights_, self.scaling_(x)).numpy()]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return class probabilities (N, C) of features X (N, D), columns in the order of `classes_`."""
        x = self._checked_predict(X)
        logits = self.scaling_(x) @ self.weights_[:-1] + self.weights_[-1]
        return torch.softmax(logits.double(), 1).numpy()


class KNNProbe(FeatureClassifier):
    """Weighted k nearest neighbours with cosine similarity: the protocol `knn` (or `knn_whitened`) with a fixed k.

    A neighbour of similarity s votes with weight exp(s / temperature) (Sec. 3.4 of arXiv 1805.01978).

    Args:
        k: number of neighbours, >= 1; cut to the number of training images.
        temperature: of the weights, > 0.
        whiten: whiten features first, by their moments on the training set.

    Attributes:
        features_: (N, D) float32 training features.
        labels_: (N,) int64 class indices.
        scaling_: the whitening map, or None.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, whiten: bool = False):
        self.k = k
        self.temperature = temperature
        self.whiten = whiten

    def fit(self, X: ArrayLike, y: ArrayLike) -> KNNProbe:
        """Keep features X (N, D) and class labels y (N,)."""
        features = self._checked_fit(X, y)
        self.features_, self.labels_ = features.x, features.y
        self.scaling_ = whitener(features.x) if self.whiten else None
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class labels (N,) of features X (N, D)."""
        x, classes = self._checked_predict(X), len(self.classes_)
        votes = knn_predict(
            self.features_, self.labels_, x, [self.k], classes, temperature=self.temperature, scale=self.scaling_
        )
        return self.classes_[votes[self.k].numpy()]


class LinearHead(FeatureClassifier):
    """Linear classifier trained by SGD, LARS or Adam with a warm-up and a cosine schedule: one head of a protocol.

    The defaults train quickly on thousands of features. The recipes of MAE, DINOv2, DDAE and l-DAE are the protocols
    `mae`, `dinov2`, `ddae` and `paper` of `linear_probe.PROTOCOLS`.

    Args:
        learning_rate: peak learning rate, > 0, not scaled by the batch size.
        epochs: passes over the features, > 0; may be a fraction.
        batch_size: at most; never more than there are features.
        optimizer: `sgd` or `lars`, both with momentum 0.9, or `adam`; none has weight decay.
        warmup: fraction of all steps during which the learning rate rises from 0, in [0, 1).
        batch_norm: standardise each batch first (BatchNorm without affine parameters).
        random_state: seed of initial weights and batch order.

    Attributes:
        head_: the trained head.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        epochs: float = 90,
        batch_size: int = 1024,
        optimizer: Literal["sgd", "lars", "adam"] = "adam",
        warmup: float = 0.0,
        batch_norm: bool = True,
        random_state: int = 0,
    ):
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.warmup = warmup
        self.batch_norm = batch_norm
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearHead:
        """Train the head on features X (N, D) and class labels y (N,)."""
        features = self._checked_fit(X, y)
        options: dict[str, Any] = {"rule": self.optimizer, "warmup": self.warmup, "batch_norm": self.batch_norm}
        recipe = HeadRecipe((self.learning_rate,), batch=self.batch_size, epochs=self.epochs, whole=True, **options)
        self.head_ = train_heads(features.x, features.y, len(self.classes_), recipe, self.random_state)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class labels (N,) of features X (N, D)."""
        x = self._checked_predict(X)
        return self.classes_[self.head_.predict(x)[0].numpy()]

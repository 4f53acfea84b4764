"""Fit logistic regression on frozen features by L-BFGS with the gradient in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from linear_probe.scaling import narrow_eigh

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties over the number of training features
ROWS = 4096  # of a sum, whose squares then stay in a core's cache
PAD = 16  # columns; narrower matrix products are ten times slower in MKL
SMALL = 2**15  # images x padded classes; below it, the calls cost more than the arithmetic
SAMPLE = 8  # features for each dimension, whose moments tell whether a rotation saves iterations
# Condition number of these moments up to which it does not: those of independent features have about
# ((1 + SAMPLE**-0.5) / (1 - SAMPLE**-0.5))**2 = 4.4 (Marchenko and Pastur 1967).
ROUND = 6.0

# A fit ends where every slope is below the first, or an iteration lowers the loss by less than the second: in single
# precision, line searches beyond them try step after step in the noise.
GRADIENT, DECREASE = 1e-5, 1e-8
# A loss below this is one of few images, which the features separate: both limits would leave much of it, and the fit
# goes on to limits smaller in proportion to the loss.
SEPARATED = 0.1

# mean loss, its gradients by the weights (D', C') and by the biases (C',), float32
Gradient = tuple[float, np.ndarray, np.ndarray]


class Logistic:
    """Multinomial logistic regression, mean cross-entropy + penalty / 2 ||W||^2, by scipy's L-BFGS.

    The objective is scikit-learn's with C = 1 / (N penalty). Preconditioned: its curvature along a direction of the
    features is about their second moment / classes plus the penalty, so L-BFGS works in the eigenbasis of the moments,
    with each direction scaled by the root of that curvature; without the rotation, which takes as long as tens of
    iterations, where the features are nearly independent. Biases, of moment 1 and without penalty, are scaled too.
    Classes are padded to a multiple of 16 with empty ones, because narrow matrix products are slow. Equal columns,
    which grey images have three times, are merged: m of them into one of sqrt(m) times the size, which leaves the
    optimum unchanged.

    Args:
        x: (N, D) float32, preferably standardised.
        y: (N,) int64 labels.
        classes: number of classes C.

    Attributes:
        n_iter: iterations that the last fit took.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.y, self.classes, self.width = y, classes, -(-classes // PAD) * PAD
        self.group, counts = equal_columns(x)
        self.times = counts.sqrt()[:, None]  # (D', 1)
        if len(counts) < x.shape[1]:
            x = x[:, first_columns(self.group)] * self.times.T
        self.basis: Tensor | None = None
        self.z = x
        if are_independent(x):
            self.moments = sum(part.square().sum(0).double() for part in x.split(ROWS)) / len(x)
        elif len(x) < x.shape[1]:  # the weights lie in the span of the N features
            self._rotate(x, *narrow_eigh(x.double()))
        else:
            self._rotate(x, *torch.linalg.eigh((x.T @ x / len(x)).double()))
        self.images = torch.arange(len(x))
        self.absent = torch.zeros(self.width)
        self.absent[classes:] = -torch.inf
        self.n_iter = 0

    def _rotate(self, x: Tensor, moments: Tensor, basis: Tensor) -> None:
        self.moments, self.basis = moments, basis.float()
        self.z = x @ self.basis

    def fit(self, penalty: float, start: Tensor | None = None, iterations: int = 500) -> Tensor:
        """Fit the weights; biases are not penalised.

        Args:
            penalty: L2 penalty of the weights, > 0.
            start: (D + 1, C) initial weights; None for 0.
            iterations: maximum number of iterations.

        Returns:
            (D + 1, C) float32, the last row the biases.
        """
        unit = (self.moments.clamp(min=0) / self.classes + penalty).rsqrt().float()[:, None]
        of_biases = self.classes**0.5  # the moment of the constant 1 is 1, and biases have no penalty
        phi = torch.zeros(len(unit) + 1, self.width)
        if start is not None:
            merged = torch.zeros(len(self.times), self.classes).index_add_(0, self.group, start[:-1]) / self.times
            phi[:-1, : self.classes] = (merged if self.basis is None else self.basis.T @ merged) / unit
            phi[-1, : self.classes] = start[-1] / of_biases

        evaluate = self._evaluate_small if len(self.z) * self.width <= SMALL else self._evaluate

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            at = flat.reshape(phi.shape).astype(np.float32)
            weights = unit.numpy() * at[:-1]
            loss, slope, offsets = evaluate(weights, of_biases * at[-1])
            slope += penalty * weights
            slope *= unit.numpy()
            loss += penalty / 2 * float(np.square(weights, dtype=np.float64).sum())
            return loss, np.concatenate([slope, of_biases * offsets[None]], dtype=np.float64).ravel()

        from scipy.optimize import minimize  # the module takes a third of a second

        def minimum(x0: np.ndarray, share: float, most: int) -> Any:
            options = {"maxiter": most, "gtol": share * GRADIENT, "ftol": share * DECREASE, "maxcor": 10}
            return minimize(loss_and_gradient, x0, jac=True, method="L-BFGS-B", options=options)

        with threadpool_limits(1, user_api="blas"):  # the vectors of scipy are short: several threads are slower
            optimum = minimum(phi.double().numpy().ravel(), 1.0, iterations)
            self.n_iter = int(optimum.nit)
            if optimum.fun < SEPARATED and self.n_iter < iterations:
                optimum = minimum(optimum.x, optimum.fun / SEPARATED, iterations - self.n_iter)
                self.n_iter += int(optimum.nit)
        theta = torch.from_numpy(optimum.x).float().reshape(phi.shape)[:, : self.classes]
        weights = unit * theta[:-1] if self.basis is None else self.basis @ (unit * theta[:-1])
        return torch.cat([(weights / self.times)[self.group], of_biases * theta[-1:]])

    def _evaluate(self, at: np.ndarray, biases: np.ndarray) -> Gradient:
        """Return the mean cross-entropy at weights (D', C') and biases (C',), and its gradients."""
        weights = torch.from_numpy(at).T.contiguous()  # as rows, both products are up to twice as fast
        offsets = (torch.from_numpy(biases) + self.absent)[:, None]
        log_p = torch.log_softmax(torch.addmm(offsets, weights, self.z.T), 0)  # (C', N)
        loss = -log_p.gather(0, self.y[None]).double().mean()
        error = log_p.exp_()
        error[self.y, self.images] -= 1
        error /= len(self.z)
        return float(loss), (error @ self.z).T.numpy(), error.sum(1).numpy()

    def _evaluate_small(self, weights: np.ndarray, biases: np.ndarray) -> Gradient:
        """Return the same by NumPy, whose calls cost a fraction of torch's: few labels take thousands of them."""
        z, images = self.z.numpy(), self.images.numpy()
        scores = z @ weights
        scores += biases + self.absent.numpy()
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores)
        total = p.sum(1, keepdims=True)
        loss = np.log(total[:, 0], dtype=np.float64) - np.take_along_axis(scores, self.y.numpy()[:, None], 1)[:, 0]
        p /= total
        p[images, self.y.numpy()] -= 1
        p /= len(z)
        return float(loss.mean()), z.T @ p, p.sum(0)


def are_independent(x: Tensor) -> bool:
    """Return whether the second moments of a sample of features (N, D) are nearly diagonal, and N is large."""
    count, size = SAMPLE * x.shape[1], len(x)
    if size < 2 * count:
        return False
    sample = x[:: size // count].double()
    moments = sample.T @ sample
    scale = moments.diagonal().sqrt()
    if not bool((scale > 0).all()):
        return False
    values = torch.linalg.eigvalsh(moments / torch.outer(scale, scale))
    return bool(values[-1] < ROUND * values[0])


def ridge_predict(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Predict classes by ridge regression of the one-hot labels on standardised features, in closed form.

    The penalty is chosen among RIDGES by the leave-one-out error of the training features, in closed form too
    (scikit-learn's RidgeClassifierCV). It takes a fraction of the time of a logistic regression.

    Args:
        x: (N, D) training features.
        y: (N,) int64 labels; at least two classes.
        queries: (M, D) features.

    Returns:
        (M,) int64.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifierCV([len(x) * ridge for ridge in RIDGES]))
    probe.fit(x.double().numpy(), y.numpy())
    return torch.from_numpy(probe.predict(queries.double().numpy()))


def equal_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Group equal columns of features (N, D).

    Returns:
        The group of each column, (D,) int64 in [0, D'), and the sizes of the groups, (D',) float32.
    """
    hashes = torch.linspace(1, 2, len(x), dtype=torch.float64).sin().float() @ x  # (D,): equal for equal columns
    group, counts = torch.unique(hashes, return_inverse=True, return_counts=True)[1:]
    if len(counts) < x.shape[1] and torch.equal(x, x[:, first_columns(group)][:, group]):
        return group, counts.float()
    return torch.arange(x.shape[1]), torch.ones(x.shape[1])  # hashes of different columns can coincide


def first_columns(group: Tensor) -> Tensor:
    """Return one column of each group, (D',) int64."""
    return torch.empty(int(group.max()) + 1, dtype=torch.long).scatter_(0, group, torch.arange(len(group)))


def predict(theta: Tensor, x: Tensor) -> Tensor:
    """Predict the classes (N,) int64 of features `x`, (N, D), by weights (D + 1, C) of Logistic.fit."""
    return logits(theta, x).argmax(1)


def logits(theta: Tensor, x: Tensor, block: int = 16384) -> Tensor:
    """Return the logits of the classes.

    Args:
        theta: (D + 1, C) weights of Logistic.fit.
        x: (N, D) features.
        block: images per matrix product.

    Returns:
        (N, C) float32.
    """
    return torch.cat([part @ theta[:-1] + theta[-1] for part in x.split(block)])

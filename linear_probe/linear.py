"""Logistic regression on frozen features, by L-BFGS, with the closed-form gradient of the cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from linear_probe.scaling import narrow_eigh

PAD = 16  # matrix products with fewer columns than this fall off a cliff in MKL


class Logistic:
    """Multinomial logistic regression, mean cross-entropy + penalty / 2 ||W||^2, by L-BFGS (scipy's).

    The same objective as scikit-learn's with C = 1 / (N penalty). Its curvature along a direction of the features
    is their second moment times about 1 / classes, plus the penalty; L-BFGS moves in the eigenbasis of the
    moments with each direction in that unit, where the problem is far better
    conditioned. Classes are padded to a multiple of 16 with ones that nothing belongs to: narrow matrix products are
    ten times slower. Equal features are taken together, m of them as one of sqrt(m) times the size, which is the same
    problem: grey images have every pixel three times.

    Args:
        x: (N, D) float32, best standardised.
        y: (N,) int64.
        classes: how many there are.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.y, self.classes, self.width = y, classes, -(-classes // PAD) * PAD
        self.group, counts = equal_columns(x)
        self.times = counts.sqrt()[:, None]  # (D', 1)
        if len(counts) < x.shape[1]:
            x = x[:, members(self.group)] * self.times.T
        if len(x) < x.shape[1]:  # the weights are a sum of features, so few directions matter
            self.moments, basis = narrow_eigh(x.double())
        else:
            self.moments, basis = torch.linalg.eigh((x.T @ x / len(x)).double())
        self.basis = basis.float()
        self.z = x @ self.basis
        self.target = torch.zeros(len(x), self.width).scatter_(1, y[:, None], 1.0)
        self.absent = torch.zeros(self.width)
        self.absent[classes:] = -torch.inf
        self.n_iter = 0

    def fit(self, penalty: float, start: Tensor | None = None, iterations: int = 500) -> Tensor:
        """The optimum for a penalty of the weights (biases go free).

        Args:
            start: (D + 1, classes) to begin at, or None for 0.

        Returns:
            (D + 1, classes) float32, the last row the biases.
        """
        unit = (self.moments.clamp(min=0) / self.classes + penalty).rsqrt().float()[:, None]
        phi = torch.zeros(len(unit) + 1, self.width)
        if start is not None:
            merged = torch.zeros(len(self.times), self.classes).index_add_(0, self.group, start[:-1]) / self.times
            phi[:-1, : self.classes] = self.basis.T @ merged / unit
            phi[-1, : self.classes] = start[-1]

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(flat).reshape(phi.shape).float()
            weights = unit * at[:-1]
            log_p = torch.log_softmax(torch.addmm(at[-1] + self.absent, self.z, weights), 1)
            loss = -log_p.gather(1, self.y[:, None]).double().mean()
            error = log_p.exp_().sub_(self.target).div_(len(self.z))
            gradient = torch.empty(phi.shape)
            gradient[:-1] = unit * torch.addmm(penalty * weights, self.z.T, error)
            gradient[-1] = error.sum(0)
            return float(loss + penalty / 2 * weights.double().square().sum()), gradient.double().numpy().ravel()

        options = {"maxiter": iterations, "gtol": 1e-6, "ftol": 1e-9, "maxcor": 10}
        begin = phi.double().numpy().ravel()
        with threadpool_limits(1, user_api="blas"):  # its sums are short: threads of OpenBLAS would wait, spinning
            found = minimize(loss_and_gradient, begin, jac=True, method="L-BFGS-B", options=options)
        self.n_iter = int(found.nit)
        theta = torch.from_numpy(found.x).float().reshape(phi.shape)[:, : self.classes]
        return torch.cat([(self.basis @ (unit * theta[:-1]) / self.times)[self.group], theta[-1:]])


def equal_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return which columns of features (N, D) are equal: the group of each (D,) int64, and the groups' sizes (D',)."""
    marks = torch.linspace(1, 2, len(x), dtype=torch.float64).sin().float() @ x  # (D,): equal for equal columns
    group, counts = torch.unique(marks, return_inverse=True, return_counts=True)[1:]
    if len(counts) < x.shape[1] and torch.equal(x, x[:, members(group)][:, group]):
        return group, counts.float()
    return torch.arange(x.shape[1]), torch.ones(x.shape[1])  # marks of different columns can coincide


def members(group: Tensor) -> Tensor:
    """Return one column of each group, (D',) int64."""
    return torch.empty(int(group.max()) + 1, dtype=torch.long).scatter_(0, group, torch.arange(len(group)))


def predict(theta: Tensor, x: Tensor, block: int = 16384) -> Tensor:
    """Classes (N,) of features (N, D) under weights from Logistic.fit."""
    return torch.cat([(part @ theta[:-1] + theta[-1]).argmax(1) for part in x.split(block)])

"""Linear classifiers on frozen features: many SGD heads in one pass, and logistic regression by L-BFGS.

Both use the closed-form gradient of the cross-entropy, softmax(logits) - one_hot(y): no autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

PAD = 16  # matrix products with fewer columns than this fall off a cliff in MKL


@dataclass(frozen=True)
class Heads:
    """R linear classifiers on the same features.

    Attributes:
        weight: (D, R, C).
        bias: (R, C).
        mean, variance: (D,) statistics of the BatchNorm before them, or None.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None

    def predict(self, x: Tensor, block: int = 16384) -> Tensor:
        """(N, D) -> classes (R, N) int64."""
        return torch.cat([self._logits(part).argmax(2) for part in x.split(block)]).T

    def _logits(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.variance is not None:
            x = (x - self.mean) * (self.variance + BN_EPS).rsqrt()
        D, R, C = self.weight.shape
        return (x @ self.weight.reshape(D, R * C)).reshape(-1, R, C) + self.bias  # (N, R, C)


BN_EPS = 1e-6
BN_MOMENTUM = 0.1
LARS_TRUST = 0.001


@dataclass(frozen=True)
class HeadRecipe:
    """How SGD heads are trained.

    Attributes:
        rates: peak learning rate of each head, used as they are.
        batch: at most; never more than there are features.
        epochs: passes over the features (may be a fraction), if `steps` is None.
        steps: their length in steps.
        rule: plain `sgd` or `lars`, both with momentum 0.9 and no weight decay.
        warmup: share of all steps with a rising rate.
        batch_norm: whether a BatchNorm without parameters comes first.
    """

    rates: tuple[float, ...]
    batch: int
    epochs: float = 0.0
    steps: int | None = None
    rule: Literal["sgd", "lars"] = "sgd"
    warmup: float = 0.0
    batch_norm: bool = False


def train_heads(x: Tensor, y: Tensor, classes: int, recipe: HeadRecipe, seed: int = 0) -> Heads:
    """Trains a head for each learning rate, all in one pass: the features meet one matrix product a step.

    Args:
        x: (N, D) float32 features.
        y: (N,) int64 classes.
        recipe: rates, length, rule.
        seed: of the initial weights and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    N, D, R = len(x), x.shape[1], len(recipe.rates)
    weight = torch.nn.init.trunc_normal_(torch.empty(D, 1, classes), std=0.01, generator=generator).repeat(1, R, 1)
    bias = torch.zeros(R, classes)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    mean, variance = torch.zeros(D), torch.ones(D)
    batch = min(recipe.batch, N)
    steps = recipe.steps or max(1, round(recipe.epochs * N / batch))
    rates = torch.tensor(recipe.rates)
    order, place = torch.randperm(N, generator=generator), 0
    for step in range(steps):
        if place + batch > N:
            order, place = torch.randperm(N, generator=generator), 0
        rows = order[place : place + batch]
        place += batch
        features, target = x[rows], y[rows]
        if recipe.batch_norm:
            spread, centre = torch.var_mean(features, dim=0, correction=0)
            features = (features - centre) * (spread + BN_EPS).rsqrt()
            mean.lerp_(centre, BN_MOMENTUM)
            variance.lerp_(spread * batch / max(1, batch - 1), BN_MOMENTUM)
        gradients = _head_gradients(features, target, weight, bias)
        _move((weight, bias), gradients, speed, rates * _cosine(step, steps, recipe.warmup), recipe.rule)
    return Heads(weight, bias, mean, variance) if recipe.batch_norm else Heads(weight, bias)


def _cosine(step: int, steps: int, warmup: float) -> float:
    warm = warmup * steps
    if step < warm:
        return (step + 1) / math.ceil(warm)
    return (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm))) / 2


def _head_gradients(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    D, R, C = weight.shape
    logits = (x @ weight.reshape(D, R * C)).reshape(-1, R, C) + bias
    error = torch.softmax(logits, 2)  # (B, R, C)
    error[torch.arange(len(y)), :, y] -= 1
    error /= len(y)
    return (x.T @ error.reshape(-1, R * C)).reshape(D, R, C), error.sum(0)


def _move(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], speed: Sequence[Tensor], rates: Tensor, rule: str
) -> None:
    """One step with momentum 0.9, for every head at its own rate.

    SGD and LARS (arXiv 1708.03888), which scales a weight's gradient by its trust ratio, a head at a time.
    """
    for parameter, gradient, v in zip(parameters, gradients, speed, strict=True):
        if rule == "lars" and parameter.ndim == 3:
            size, pull = parameter.norm(dim=(0, 2)), gradient.norm(dim=(0, 2))  # (R,)
            trust = torch.where((size > 0) & (pull > 0), LARS_TRUST * size / pull, 1.0)
            gradient = gradient * trust[None, :, None]
        v.mul_(0.9).add_(gradient)
        shape = (1, -1, 1) if parameter.ndim == 3 else (-1, 1)
        parameter.sub_(rates.reshape(shape) * v)


class Logistic:
    """Multinomial logistic regression, mean cross-entropy + penalty / 2 ||W||^2, by L-BFGS (scipy's).

    The same objective as scikit-learn's with C = 1 / (N penalty). Its curvature along a direction of the features
    is their second moment times about 1 / classes, plus the penalty; L-BFGS moves in the eigenbasis of the
    moments with each direction in that unit, where the problem is far better
    conditioned. Classes are padded to a multiple of 16 with ones that nothing belongs to: narrow matrix products are
    ten times slower.

    Args:
        x: (N, D) float32, best standardised.
        y: (N,) int64.
        classes: how many there are.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        self.y, self.classes, self.width = y, classes, -(-classes // PAD) * PAD
        self.moments, basis = torch.linalg.eigh((x.T @ x / len(x)).double())
        self.basis = basis.float()
        self.z = x @ self.basis
        self.target = torch.zeros(len(x), self.width).scatter_(1, y[:, None], 1.0)
        self.absent = torch.zeros(self.width)
        self.absent[classes:] = -torch.inf

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
            phi[:-1, : self.classes] = self.basis.T @ start[:-1] / unit
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
        found = minimize(loss_and_gradient, phi.double().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
        theta = torch.from_numpy(found.x).float().reshape(phi.shape)[:, : self.classes]
        return torch.cat([self.basis @ (unit * theta[:-1]), theta[-1:]])


def predict(theta: Tensor, x: Tensor, block: int = 16384) -> Tensor:
    """Classes (N,) of features (N, D) under weights from Logistic.fit."""
    return torch.cat([(part @ theta[:-1] + theta[-1]).argmax(1) for part in x.split(block)])

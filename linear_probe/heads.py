"""Linear classifiers that SGD trains: many heads side by side, a batch a step.

The gradient of the cross-entropy is written out, softmax(logits) - one_hot(y): no autograd.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

BN_EPS = 1e-6
BN_MOMENTUM = 0.1
MOMENTUM = 0.9
LARS_TRUST = 0.001


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

    def predict(self, x: Tensor, numbers: int = 2**24) -> Tensor:
        """(N, D) -> classes (R, N) int64, with about so many logits in memory at once."""
        block = max(1, numbers // self.bias.numel())
        return torch.cat([self._logits(part).argmax(2) for part in x.split(block)]).T

    def _logits(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.variance is not None:
            x = (x - self.mean) * (self.variance + BN_EPS).rsqrt()
        D, R, C = self.weight.shape
        return (x @ self.weight.reshape(D, R * C)).reshape(-1, R, C) + self.bias  # (N, R, C)


@dataclass(frozen=True)
class HeadRecipe:
    """The recipe that SGD heads are trained by.

    Attributes:
        rates: peak learning rate of each head, used as they are.
        batch: at most; never more than there are features.
        epochs: passes over the features (may be a fraction), if `steps` is None.
        steps: their length in steps.
        rule: plain `sgd` or `lars`, both with momentum 0.9, or `adam`; none has weight decay.
        warmup: share of all steps with a rising rate, from 0.
        batch_norm: whether a BatchNorm without parameters comes first.
        start: of the weights, `small` (normal, 0.01; biases 0) or `linear` (as torch's nn.Linear).
        whole: whether an epoch ends with an incomplete batch; else the images that are over are left out of it.
        stairs: whether the rate stays as it is for an epoch.
    """

    rates: tuple[float, ...]
    batch: int
    epochs: float = 0.0
    steps: int | None = None
    rule: Literal["sgd", "lars", "adam"] = "sgd"
    warmup: float = 0.0
    batch_norm: bool = False
    start: Literal["small", "linear"] = "small"
    whole: bool = False
    stairs: bool = False

    def lengths(self, images: int) -> tuple[int, int, int]:
        """For so many images: the size of a batch, steps of an epoch, steps in all."""
        batch = min(self.batch, images)
        of_epoch = -(-images // batch) if self.whole else images // batch
        return batch, of_epoch, self.steps or max(1, round(self.epochs * of_epoch))


class Rule(ABC):
    """An update rule along a gradient; the last but one axis of each parameter is that of the heads."""

    @abstractmethod
    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        """One step in place, for every head at its own rate, (R,)."""


class Momentum(Rule):
    """SGD with momentum 0.9, a weight's gradient scaled by `trust` first.

    Args:
        trust: (weight, gradient), both (D, R, C) -> a factor for each head, (R,); none if None.
    """

    def __init__(self, trust: Callable[[Tensor, Tensor], Tensor] | None = None):
        self.trust, self.speed = trust, list[Tensor]()

    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        self.speed = self.speed or [torch.zeros_like(p) for p in parameters]
        for parameter, gradient, v in zip(parameters, gradients, self.speed, strict=True):
            if self.trust is not None and parameter.ndim == 3:
                gradient = gradient * self.trust(parameter, gradient)[None, :, None]
            v.mul_(MOMENTUM).add_(gradient)
            parameter.sub_(rates[:, None] * v)


def lars_trust(weight: Tensor, gradient: Tensor) -> Tensor:
    """LARS' ratio 0.001 |weight| / |gradient| of each head (arXiv 1708.03888): (D, R, C) both -> (R,)."""
    size, pull = weight.norm(dim=(0, 2)), gradient.norm(dim=(0, 2))
    return torch.where((size > 0) & (pull > 0), LARS_TRUST * size / pull, 1.0)


class Adam(Rule):
    """Adam (arXiv 1412.6980), beta 0.9 and 0.999, epsilon 1e-8, as torch's."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, list[Tensor](), list[Tensor]()

    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        self.first = self.first or [torch.zeros_like(p) for p in parameters]
        self.second = self.second or [torch.zeros_like(p) for p in parameters]
        self.count += 1
        for parameter, gradient, m, v in zip(parameters, gradients, self.first, self.second, strict=True):
            m.lerp_(gradient, 0.1)
            v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = (v / (1 - 0.999**self.count)).sqrt_().add_(1e-8)
            parameter.sub_(rates[:, None] * (m / (1 - 0.9**self.count)) / size)


RULES: Mapping[str, Callable[[], Rule]] = {"sgd": Momentum, "lars": lambda: Momentum(lars_trust), "adam": Adam}


def small_start(dimensions: int, classes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Weight (D, 1, C) normal with deviation 0.01, bias (1, C) zero: MAE's and DINOv2's."""
    weight = torch.nn.init.trunc_normal_(torch.empty(dimensions, 1, classes), std=0.01, generator=generator)
    return weight, torch.zeros(1, classes)


def linear_start(dimensions: int, classes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Weight (D, 1, C) and bias (1, C) as in torch's nn.Linear, uniform on +- 1 / sqrt(D)."""
    bound = dimensions**-0.5
    drawn = (torch.rand(dimensions + 1, classes, generator=generator) * 2 - 1) * bound
    return drawn[:-1, None], drawn[-1:]


STARTS = {"small": small_start, "linear": linear_start}


class HeadTrainer:
    """R heads, one for each learning rate, that learn from one batch of features after another.

    Args:
        dimensions: D of the features.
        classes: C.
        recipe: rates, length, rule.
        images: how many there are to learn from: sets the length.
        generator: of the initial weights.
    """

    def __init__(self, dimensions: int, classes: int, recipe: HeadRecipe, images: int, generator: Generator):
        self.recipe = recipe
        self.batch, self.of_epoch, self.steps = recipe.lengths(images)
        weight, bias = STARTS[recipe.start](dimensions, classes, generator)
        self.weight, self.bias = (p.repeat(*[1] * (p.ndim - 2), len(recipe.rates), 1) for p in (weight, bias))
        self.mean, self.variance = torch.zeros(dimensions), torch.ones(dimensions)
        self.rates, self.rule, self.done = torch.tensor(recipe.rates), RULES[recipe.rule](), 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """Learns from features (B, D) of classes (B,)."""
        if self.recipe.batch_norm:
            x = self._normalised(x)
        gradients = _head_gradients(x, y, self.weight, self.bias)
        at = self.done - self.done % self.of_epoch if self.recipe.stairs else self.done
        factor = _cosine(at, self.steps, self.recipe.warmup)
        self.rule.move((self.weight, self.bias), gradients, self.rates * factor)
        self.done += 1

    def _normalised(self, x: Tensor) -> Tensor:
        """With the batch's own moments; takes them into the running ones."""
        spread, centre = torch.var_mean(x, dim=0, correction=0)
        self.mean.lerp_(centre, BN_MOMENTUM)
        self.variance.lerp_(spread * len(x) / max(1, len(x) - 1), BN_MOMENTUM)
        return (x - centre) * (spread + BN_EPS).rsqrt()

    @property
    def heads(self) -> Heads:
        """As they are now."""
        moments = (self.mean, self.variance) if self.recipe.batch_norm else ()
        return Heads(self.weight, self.bias, *moments)

    def orders(self, images: int, generator: Generator) -> Iterator[Tensor]:
        """Rows of each step's batch, every epoch in an order of its own."""
        order = torch.empty(0)
        for step in range(self.steps):
            place = step % self.of_epoch * self.batch
            if place == 0:
                order = torch.randperm(images, generator=generator)
            yield order[place : place + self.batch]


def train_heads(x: Tensor, y: Tensor, classes: int, recipe: HeadRecipe, seed: int = 0) -> Heads:
    """Trains a head for each learning rate, all in one pass: the features meet one matrix product a step.

    Args:
        x: (N, D) float32 features.
        y: (N,) int64 classes.
        recipe: rates, length, rule.
        seed: of the initial weights and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    trainer = HeadTrainer(x.shape[1], classes, recipe, len(x), generator)
    for rows in trainer.orders(len(x), generator):
        trainer.step(x[rows], y[rows])
    return trainer.heads


def _cosine(step: int, steps: int, warmup: float) -> float:
    """MAE's factor of the rate: a line from 0, then half a cosine to 0."""
    warm = warmup * steps
    if step < warm:
        return step / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm))) / 2


def _head_gradients(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    D, R, C = weight.shape
    logits = (x @ weight.reshape(D, R * C)).reshape(-1, R, C) + bias
    error = torch.softmax(logits, 2)  # (B, R, C)
    error[torch.arange(len(y)), :, y] -= 1
    error /= len(y)
    return (x.T @ error.reshape(-1, R * C)).reshape(D, R, C), error.sum(0)

"""Train linear classifiers by SGD, one for each learning rate, on the same batches.

The gradient of the cross-entropy is in closed form, softmax(logits) - one_hot(y), without autograd.
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
        mean, variance: (D,) running statistics of the BatchNorm in front, or None without one.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None

    def predict(self, x: Tensor, numbers: int = 2**24) -> Tensor:
        """Return the predicted classes, (R, N) int64.

        Args:
            x: (N, D) features.
            numbers: number of logits in memory at a time.
        """
        block = max(1, numbers // self.bias.numel())
        return torch.cat([self._logits(part).argmax(2) for part in x.split(block)]).T

    def _logits(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.variance is not None:
            x = (x - self.mean) * (self.variance + BN_EPS).rsqrt()
        D, R, C = self.weight.shape
        return (x @ self.weight.reshape(D, R * C)).reshape(-1, R, C) + self.bias  # (N, R, C)


@dataclass(frozen=True)
class HeadRecipe:
    """Hyper-parameters of SGD heads.

    Attributes:
        rates: peak learning rate of each head, > 0, not scaled by the batch size.
        batch: batch size, reduced to the number of features.
        epochs: passes over the features, > 0, may be fractional; ignored if `steps` is given.
        steps: number of training steps.
        rule: `sgd` or `lars`, both with momentum 0.9, or `adam`; none has weight decay.
        warmup: fraction of the steps during which the rate rises linearly from 0, in [0, 1).
        batch_norm: standardise each batch first (BatchNorm without affine parameters).
        start: initial weights, `small` (normal of deviation 0.01; biases 0) or `linear` (as torch's nn.Linear).
        whole: end an epoch with an incomplete batch; otherwise its images are dropped.
        stairs: change the rate between epochs only.
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
        """Return batch size, steps per epoch and total steps for a number of images."""
        batch = min(self.batch, images)
        of_epoch = -(-images // batch) if self.whole else images // batch
        return batch, of_epoch, self.steps or max(1, round(self.epochs * of_epoch))


class Rule(ABC):
    """Update rule of gradient descent; the second to last axis of each parameter is that of the heads."""

    @abstractmethod
    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        """Update the parameters in place.

        Args:
            parameters: weight (D, R, C) and bias (R, C).
            gradients: their gradients, of the same shapes.
            rates: (R,) learning rate of each head.
        """


class Momentum(Rule):
    """SGD with momentum 0.9 and an optional factor of the weights' gradients.

    Args:
        trust: function from weight and gradient, both (D, R, C), to the factor of each head, (R,); None for 1.
    """

    def __init__(self, trust: Callable[[Tensor, Tensor], Tensor] | None = None):
        self.trust, self.velocity = trust, list[Tensor]()

    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        """Update parameters and velocities in place."""
        self.velocity = self.velocity or [torch.zeros_like(p) for p in parameters]
        for parameter, gradient, v in zip(parameters, gradients, self.velocity, strict=True):
            if self.trust is not None and parameter.ndim == 3:
                gradient = gradient * self.trust(parameter, gradient)[None, :, None]
            v.mul_(MOMENTUM).add_(gradient)
            parameter.sub_(rates[:, None] * v)


def lars_trust(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return LARS' ratio 0.001 |weight| / |gradient| of each head (arXiv 1708.03888): (D, R, C) both to (R,)."""
    weight_norm, gradient_norm = weight.norm(dim=(0, 2)), gradient.norm(dim=(0, 2))
    return torch.where((weight_norm > 0) & (gradient_norm > 0), LARS_TRUST * weight_norm / gradient_norm, 1.0)


class Adam(Rule):
    """Adam (arXiv 1412.6980) with betas 0.9 and 0.999 and epsilon 1e-8, as torch's."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, list[Tensor](), list[Tensor]()

    def move(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
        """Update parameters and moments in place."""
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
    """Return a normal weight (D, 1, C) of deviation 0.01 and a zero bias (1, C), as MAE and DINOv2 do."""
    weight = torch.nn.init.trunc_normal_(torch.empty(dimensions, 1, classes), std=0.01, generator=generator)
    return weight, torch.zeros(1, classes)


def linear_start(dimensions: int, classes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a weight (D, 1, C) and a bias (1, C), uniform in +- 1 / sqrt(D), as torch's nn.Linear does."""
    bound = dimensions**-0.5
    drawn = (torch.rand(dimensions + 1, classes, generator=generator) * 2 - 1) * bound
    return drawn[:-1, None], drawn[-1:]


STARTS = {"small": small_start, "linear": linear_start}


class HeadTrainer:
    """Trainer of R heads, one for each learning rate, batch by batch.

    Args:
        dimensions: dimension D of the features.
        classes: number of classes C.
        recipe: hyper-parameters.
        images: number of training images, which determines the number of steps.
        generator: generator of the initial weights.
    """

    def __init__(self, dimensions: int, classes: int, recipe: HeadRecipe, images: int, generator: Generator):
        self.recipe = recipe
        self.batch, self.of_epoch, self.steps = recipe.lengths(images)
        weight, bias = STARTS[recipe.start](dimensions, classes, generator)
        self.weight, self.bias = (p.repeat(*[1] * (p.ndim - 2), len(recipe.rates), 1) for p in (weight, bias))
        self.mean, self.variance = torch.zeros(dimensions), torch.ones(dimensions)
        self.rates, self.rule, self.done = torch.tensor(recipe.rates), RULES[recipe.rule](), 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """Update the heads on features (B, D) with labels (B,)."""
        if self.recipe.batch_norm:
            x = self._normalised(x)
        gradients = _head_gradients(x, y, self.weight, self.bias)
        at = self.done - self.done % self.of_epoch if self.recipe.stairs else self.done
        factor = _cosine(at, self.steps, self.recipe.warmup)
        self.rule.move((self.weight, self.bias), gradients, self.rates * factor)
        self.done += 1

    def _normalised(self, x: Tensor) -> Tensor:
        """Standardise features (B, D) by the moments of the batch, and update the running moments."""
        spread, centre = torch.var_mean(x, dim=0, correction=0)
        self.mean.lerp_(centre, BN_MOMENTUM)
        self.variance.lerp_(spread * len(x) / max(1, len(x) - 1), BN_MOMENTUM)
        return (x - centre) * (spread + BN_EPS).rsqrt()

    @property
    def heads(self) -> Heads:
        """Return the heads after the last step."""
        moments = (self.mean, self.variance) if self.recipe.batch_norm else ()
        return Heads(self.weight, self.bias, *moments)

    def orders(self, images: int, generator: Generator) -> Iterator[Tensor]:
        """Yield the rows (B,) of each step's batch, in a new random order for every epoch."""
        order = torch.empty(0)
        for step in range(self.steps):
            place = step % self.of_epoch * self.batch
            if place == 0:
                order = torch.randperm(images, generator=generator)
            yield order[place : place + self.batch]


def train_heads(x: Tensor, y: Tensor, classes: int, recipe: HeadRecipe, seed: int = 0) -> Heads:
    """Train a head for each learning rate, all by one matrix product per step.

    Args:
        x: (N, D) float32 features.
        y: (N,) int64 labels.
        classes: number of classes C.
        recipe: hyper-parameters.
        seed: seed of initial weights and order.

    Returns:
        The trained heads, one for each rate of the recipe.
    """
    generator = torch.Generator().manual_seed(seed)
    trainer = HeadTrainer(x.shape[1], classes, recipe, len(x), generator)
    for rows in trainer.orders(len(x), generator):
        trainer.step(x[rows], y[rows])
    return trainer.heads


def _cosine(step: int, steps: int, warmup: float) -> float:
    """Return MAE's factor of the learning rate: linear warm-up from 0, then half a cosine to 0."""
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

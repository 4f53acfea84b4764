"""Data whose best prediction is known in closed form (linear for normal data)."""

from __future__ import annotations

import math

import torch

from ldae.diffusion.bound import reverse_steps
from ldae.diffusion.posterior import StepBack
from ldae.diffusion.samplers import StepRule
from ldae.diffusion.trajectory import Prediction


class Normal:
    """Numbers from N(mean, s^2), and the exact E[x0 | x] and Var[x0 | x] at a stage."""

    def __init__(self, s, mean=0.0):
        self.s, self.mean = s, mean

    def gain(self, step):
        return step.gamma * self.s**2 / self.spread(step)

    def left(self, step):
        return self.s**2 * step.sigma**2 / self.spread(step)

    def spread(self, step):
        """Variance of x at the stage."""
        return step.gamma**2 * self.s**2 + step.sigma**2

    def __call__(self, x, step):
        return Prediction(self.mean + self.gain(step) * (x - step.gamma * self.mean))


class Exact(StepRule):
    """Ancestral steps of `Normal` data with the true variance: beta_tilde + clean^2 Var[x0 | x]."""

    def __init__(self, data):
        self.data = data

    def variance(self, now, then):
        back = StepBack.between(now, then)
        return back.beta_tilde + back.clean**2 * self.data.left(now) if then.sigma else 0.0

    def __call__(self, x, prediction, now, then, rng):
        mean = StepBack.between(now, then).mean(prediction.x0, x)
        return mean + math.sqrt(self.variance(now, then)) * rng.normal(x.shape) if then.sigma else mean


class NormalWithTrueVariance:
    """`Normal` data, with the interpolation that makes a learned variance the true one, for the bound too."""

    def __init__(self, data, trajectory):
        self.data = data
        self.backs = dict(zip(trajectory[:-1], reverse_steps(trajectory), strict=True))

    def __call__(self, x, step):
        back = self.backs[step]
        low, high = math.log(back.beta_tilde), math.log(back.beta)
        true = (0.0 if back.final else back.beta_tilde) + back.clean**2 * self.data.left(step)
        share = (math.log(true) - low) / (high - low)
        return Prediction(self.data(x, step).x0, torch.full_like(x, share))


class TwoModes:
    """Numbers that are one of two normal ones: means m, weights w, both of deviation s."""

    def __init__(self, means=(-1.0, 1.0), weights=(0.3, 0.7), s=0.25):
        self.means, self.weights = (torch.tensor(x).reshape(2, 1) for x in (means, weights))
        self.s = s

    def __call__(self, x, step):
        flat = x.reshape(1, -1)
        spread = step.gamma**2 * self.s**2 + step.sigma**2
        away = flat - step.gamma * self.means  # (2, N)
        belongs = (self.weights.log() - away**2 / (2 * spread)).softmax(0)
        x0 = self.means + step.gamma * self.s**2 / spread * away
        return Prediction((belongs * x0).sum(0).reshape(x.shape))

    def drawn(self, shape, seed):
        g = torch.Generator().manual_seed(seed)
        first = torch.rand(shape, generator=g) < self.weights[0]
        return torch.where(first, *self.means.flatten()) + self.s * torch.randn(shape, generator=g)

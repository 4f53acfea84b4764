"""The learned variance of a step back, p(x_{t-1} | x_t) (arXiv 2102.09672)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import NoiseLevel
from ldae.diffusion.posterior import Posterior, discretised_nll, divergence
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import Target, usable_steps


class LearnedRange:
    """The answer is [prediction, v]: ln variance = f ln beta + (1 - f) ln beta_tilde, f = (v + 1) / 2, v unbounded.

    Eq. 15 of arXiv 2102.09672. It learns by the variational bound's term of the level, which does not reach the
    prediction (Sec. 3.1 there). The bound is a sum over t, and 0.001 of it counts beside a prediction's loss of weight
    1 (Eq. 16); of one t that is T / 1000 of its term, which is 1 at the T of DiT.

    Args:
        schedule: preserves variance.
        target: what the prediction is, for the way to x0.
        alone: whether the bound is all the loss (L_vlb, Sec. 3.3 there): it then reaches the prediction too, and
            counts whole, T times its term. With weight=zero and timesteps=loss_aware.

    Raises:
        ConfigError: the schedule has no posterior, or the prediction does not tell x0 at one of its levels.
    """

    def __init__(self, schedule: NoiseSchedule, target: Target, alone: bool = False):
        self.posterior, self.target, self.alone = Posterior(schedule), target, alone
        self.scale = schedule.T * (1 if alone else 0.001)
        if (usable := usable_steps(schedule, target)) < schedule.T:
            message = f"does not determine x0 at step t = {usable} of {type(schedule).__name__}; use x0 or v"
            raise ConfigError("target", type(target).__name__, message)

    def prediction(self, out: Tensor) -> Tensor:
        """Return the first C channels of an answer (B, 2 C, H, W): the prediction of the target."""
        return out[:, : out.shape[1] // 2]

    def log_variance(self, out: Tensor, level: NoiseLevel) -> Tensor:
        interpolation = self.interpolation(out)
        widest = self.posterior.at(self.posterior.log_beta, level, interpolation)
        narrowest = self.posterior.at(self.posterior.log_beta_tilde, level, interpolation)
        return interpolation * widest + (1 - interpolation) * narrowest

    def interpolation(self, out: Tensor) -> Tensor:
        v = out[:, out.shape[1] // 2 :]  # (B, C, H, W)
        return (v + 1) / 2

    def bound(self, out: Tensor, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """vb: T / 1000 of KL[q(x_{t-1} | x_t, x_0) | p], at t = 0 of -ln p(x_0 | x_1), 256 levels; bits per number.

        T of it if it is alone.
        """
        q, message = self.posterior, self.prediction(out)
        found = self.target.to_x0(message if self.alone else message.detach(), x_t, level)
        mean, log_variance = q.mean(found, x_t, level), self.log_variance(out, level)
        true = q.mean(x0, x_t, level), q.at(q.log_beta_tilde, level, x0)
        back = divergence(*true, mean, log_variance)
        last = discretised_nll(x0, mean, log_variance)
        nats = torch.where(level.t == 0, last.flatten(1).mean(1), back.flatten(1).mean(1))  # (B,)
        return nats / math.log(2) * self.scale

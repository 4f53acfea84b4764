"""Learned variance of the reverse step p(x_{t-1} | x_t) (arXiv 2102.09672)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import NoiseLevel
from ldae.diffusion.posterior import Posterior, discretised_nll, gaussian_kl
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import Target, usable_steps


class LearnedRange:
    """Variance interpolated between beta_tilde and beta by the second half of the network's channels, v.

    ln variance = f ln beta + (1 - f) ln beta_tilde, f = (v + 1) / 2, v unbounded (Eq. 15, arXiv 2102.09672). It is
    trained by the variational bound, whose gradient is stopped at the prediction (Sec. 3.1 there). L_hybrid adds 0.001
    of the bound, a sum over t, to a loss of weight 1 (Eq. 16 there): T / 1000 of the term of a single t.

    Args:
        schedule: preserves variance.
        target: the quantity that the first half of the channels predicts.
        alone: use the bound as the whole loss (L_vlb, Sec. 3.3 there): the gradient then reaches the prediction, and
            the factor is T. Belongs with weight=zero and timesteps=loss_aware.

    Raises:
        ConfigError: the schedule has no posterior, or the prediction does not determine x0 at one of its levels.
    """

    def __init__(self, schedule: NoiseSchedule, target: Target, alone: bool = False):
        self.posterior, self.target, self.alone = Posterior(schedule), target, alone
        self.scale = schedule.T * (1 if alone else 0.001)
        if (usable := usable_steps(schedule, target)) < schedule.T:
            message = f"does not determine x0 at step t = {usable} of {type(schedule).__name__}; use x0 or v"
            raise ConfigError("target", type(target).__name__, message)

    def prediction(self, out: Tensor) -> Tensor:
        """Return the prediction of the target, the first C channels of an output (B, 2 C, H, W)."""
        return out[:, : out.shape[1] // 2]

    def log_variance(self, out: Tensor, level: NoiseLevel) -> Tensor:
        """Return ln variance, (B, C, H, W), from an output (B, 2 C, H, W) (Eq. 15, arXiv 2102.09672)."""
        interpolation = self.interpolation(out)
        widest = self.posterior.at(self.posterior.log_beta, level, interpolation)
        narrowest = self.posterior.at(self.posterior.log_beta_tilde, level, interpolation)
        return interpolation * widest + (1 - interpolation) * narrowest

    def interpolation(self, out: Tensor) -> Tensor:
        """Return f = (v + 1) / 2, (B, C, H, W), from an output (B, 2 C, H, W)."""
        v = out[:, out.shape[1] // 2 :]  # (B, C, H, W)
        return (v + 1) / 2

    def bound(self, out: Tensor, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return the term of the variational bound at `level`, scaled by T / 1000 (by T if it is alone).

        KL[q(x_{t-1} | x_t, x_0) | p(x_{t-1} | x_t)]; at t = 0 -ln p(x_0 | x_1) of 256 levels (Eq. 5, arXiv 2006.11239).

        Args:
            out: (B, 2 C, H, W) of the network.
            x0, x_t: (B, C, H, W).
            level: of x_t.

        Returns:
            (B,) bits per dimension.
        """
        q, prediction = self.posterior, self.prediction(out)
        predicted_x0 = self.target.to_x0(prediction if self.alone else prediction.detach(), x_t, level)
        mean, log_variance = q.mean(predicted_x0, x_t, level), self.log_variance(out, level)
        true_mean, true_log_variance = q.mean(x0, x_t, level), q.at(q.log_beta_tilde, level, x0)
        kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        nll = discretised_nll(x0, mean, log_variance)
        nats = torch.where(level.t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))  # (B,)
        return nats / math.log(2) * self.scale

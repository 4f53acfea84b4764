"""The variance of a step back, p(x_{t-1} | x_t): left to the sampler, or learned with the prediction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.diffusion.gaussians import discretised_nll, divergence
from ldae.diffusion.posterior import Posterior
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import Target, usable_steps
from ldae.errors import ConfigError
from ldae.types import NoiseLevel


class Variance(ABC):
    """What of a network's answer is the prediction, what the variance, and what the latter adds to the loss.

    Attributes:
        lives_with_noise: whether it is about the noise, and so exists only in the space that the noise was added in.
        answers: channels of the network's answer for each channel of the prediction.
    """

    lives_with_noise: bool
    answers: int

    def widened(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of a prediction -> that of the network's answer."""
        return self.answers * shape[0], shape[1], shape[2]

    def prediction(self, out: Tensor) -> Tensor:
        """The first C channels of an answer (B, answers * C, H, W): what the target asks for."""
        return out[:, : out.shape[1] // self.answers]

    @abstractmethod
    def log_variance(self, out: Tensor, level: NoiseLevel) -> Tensor | None:
        """ln of the variance of the step back from `level`, (B, C, H, W), or None: the sampler's choice."""

    @abstractmethod
    def share(self, out: Tensor) -> Tensor | None:
        """f of ln variance = f ln beta + (1 - f) ln beta_tilde, (B, C, H, W), for any step back; None: not learned."""

    @abstractmethod
    def bound(self, out: Tensor, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        """What it adds to the loss.

        Args:
            out: the network's answer, (B, answers * C, H, W) float32.
            x0, x_t: the clean and the noised signal, (B, C, H, W).

        Returns:
            Terms by name, each (B,); none if nothing is learned.
        """


class Fixed(Variance):
    """Nothing is learned: a sampler takes beta or beta_tilde (Sec. 3.2, arXiv 2006.11239)."""

    lives_with_noise, answers = False, 1

    def log_variance(self, out: Tensor, level: NoiseLevel) -> Tensor | None:
        return None

    def share(self, out: Tensor) -> Tensor | None:
        return None

    def bound(self, out: Tensor, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        return {}


class LearnedRange(Variance):
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

    lives_with_noise, answers = True, 2

    def __init__(self, schedule: NoiseSchedule, target: Target, alone: bool = False):
        self.posterior, self.target, self.alone = Posterior(schedule), target, alone
        self.scale = schedule.T * (1 if alone else 0.001)
        if (usable := usable_steps(schedule, target)) < schedule.T:
            told = f"does not determine x0 at step t = {usable} of {type(schedule).__name__}; use x0 or v"
            raise ConfigError("target", type(target).__name__, told)

    def log_variance(self, out: Tensor, level: NoiseLevel) -> Tensor:
        share = self.share(out)
        widest = self.posterior.at(self.posterior.log_beta, level, share)
        narrowest = self.posterior.at(self.posterior.log_beta_tilde, level, share)
        return share * widest + (1 - share) * narrowest

    def share(self, out: Tensor) -> Tensor:
        v = out[:, out.shape[1] // 2 :]  # (B, C, H, W)
        return (v + 1) / 2

    def bound(self, out: Tensor, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        """vb: T / 1000 of KL[q(x_{t-1} | x_t, x_0) | p], at t = 0 of -ln p(x_0 | x_1), 256 levels; bits per number.

        T of it if it is alone.
        """
        q, told = self.posterior, self.prediction(out)
        found = self.target.to_x0(told if self.alone else told.detach(), x_t, level)
        mean, log_variance = q.mean(found, x_t, level), self.log_variance(out, level)
        true = q.mean(x0, x_t, level), q.at(q.log_beta_tilde, level, x0)
        back = divergence(*true, mean, log_variance)
        last = discretised_nll(x0, mean, log_variance)
        nats = torch.where(level.t == 0, last.flatten(1).mean(1), back.flatten(1).mean(1))  # (B,)
        return {"vb": nats / math.log(2) * self.scale}

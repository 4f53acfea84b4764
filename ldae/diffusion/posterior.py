"""Posterior q(x_{t-1} | x_t, x_0) of a reverse step (Sec. 2, arXiv 2006.11239).

`Posterior` tabulates it for every step of a schedule; `StepBack` is that between any two steps of a trajectory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import NoiseLevel, expand
from ldae.diffusion.schedules import NoiseSchedule, lookup
from ldae.diffusion.trajectory import SamplingStep

HALF_BIN = 1 / 255  # of 256 levels on [-1, 1]
EDGE = 0.999  # beyond it lie the two outermost levels, -1 and 1
LEAST = 1e-12  # smallest probability in the logarithm


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL[N(mean, e^log_variance) | N(other_mean, e^other_log_variance)], elementwise, in nats."""
    difference = other_log_variance - log_variance
    square = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    return 0.5 * (difference - 1 + torch.exp(-difference) + square)


def discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return -ln of the probability that N(mean, e^log_variance) assigns to the bin of x, one of 256 on [-1, 1].

    A bin is x +- 1/255; the lowest extends to -infinity, the highest to infinity (Eq. 13, arXiv 2006.11239).
    Probabilities are clamped to 1e-12 at least. The published code approximates the normal distribution function
    by a tanh, here it is exact; the two differ by less than 2e-4.

    Args:
        x, mean, log_variance: of one shape; x in [-1, 1].

    Returns:
        nats, of the same shape.
    """
    scale = torch.exp(-0.5 * log_variance)
    above = (x + HALF_BIN - mean) * scale
    below = (x - HALF_BIN - mean) * scale
    inner = torch.special.ndtr(above) - torch.special.ndtr(below)
    lowest, highest = torch.special.ndtr(above), torch.special.ndtr(-below)
    probability = torch.where(x < -EDGE, lowest, torch.where(x > EDGE, highest, inner))
    return -probability.clamp(min=LEAST).log()


@dataclass(frozen=True)
class StepBack:
    """Posterior q(x_then | x_now, x_0) = N(clean x_0 + noisy x_now, variance); numbers are float64.

    For any (gamma, sigma), variance preserving or not. With alpha = gamma_now / gamma_then, a step of the corruption
    is x_now = alpha x_then + N(0, beta), beta = sigma_now^2 - alpha^2 sigma_then^2. Bayes' rule gives the mean
    (alpha sigma_then^2 x_now + gamma_then beta x_0) / sigma_now^2 and the variance
    beta_tilde = beta sigma_then^2 / sigma_now^2: Eq. 6 and 7 of arXiv 2006.11239 where gamma^2 + sigma^2 = 1.

    Attributes:
        clean, noisy: coefficients of the mean.
        beta: variance of x_now given x_then, the upper bound of the variance of the reverse step.
        beta_tilde: variance of the posterior, the lower bound.
        final: the step ends at the clean image, where beta_tilde is 0; a likelihood uses that of the step before.
    """

    clean: float
    noisy: float
    beta: float
    beta_tilde: float
    final: bool = False

    @classmethod
    def between(cls, now: SamplingStep, then: SamplingStep, eta: float = 1.0) -> StepBack:
        """Return the reverse step from `now` to the cleaner `then`; between equal steps it is the identity.

        Args:
            eta: scale of the new noise, of variance eta^2 beta_tilde. The mean keeps the other noise in x_now:
                gamma_then x_0 + sqrt(sigma_then^2 - eta^2 beta_tilde) eps, eps = (x_now - gamma_now x_0) / sigma_now
                (Eq. 12 and 16, arXiv 2010.02502). 1 is the posterior.

        Raises:
            ValueError: `then` is noisier than `now`.
        """
        if now.sigma * then.gamma < then.sigma * now.gamma:
            raise ValueError(f"t={then.t} is noisier than t={now.t}: stages must grow cleaner")
        if now.sigma == 0:  # no noise to remove; where gamma is 0 too, the result is the prediction
            noisy = then.gamma / now.gamma if now.gamma else 0.0
            return cls(0.0 if now.gamma else then.gamma, noisy, 0.0, 0.0)
        alpha = now.gamma / then.gamma if now.gamma else 0.0
        beta = max(now.sigma**2 - (alpha * then.sigma) ** 2, 0.0)
        beta_tilde = beta * (then.sigma / now.sigma) ** 2
        noisy = math.sqrt(max(then.sigma**2 - eta**2 * beta_tilde, 0.0)) / now.sigma
        return cls(then.gamma - now.gamma * noisy, noisy, beta, beta_tilde)

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        """Return the mean clean x0 + noisy x, shaped like both."""
        return self.clean * x0 + self.noisy * x


class Posterior:
    """Posterior N(clean x_0 + noisy x_t, beta_tilde) of a variance-preserving schedule; tables (T,) float64.

    With a_t = gamma_t^2, a_{-1} = 1, alpha_t = a_t / a_{t-1}, beta_t = 1 - alpha_t (Eq. 6 and 7, arXiv 2006.11239):
    clean = sqrt(a_{t-1}) beta_t / (1 - a_t), noisy = sqrt(alpha_t) (1 - a_{t-1}) / (1 - a_t),
    beta_tilde = beta_t (1 - a_{t-1}) / (1 - a_t).

    Attributes:
        log_beta: ln beta_t, the upper bound of the log variance of a reverse step.
        log_beta_tilde: ln beta_tilde_t, the lower bound; at t = 0, where beta_tilde is 0, that of t = 1.

    Raises:
        ConfigError: the schedule does not preserve variance, starts without noise, does not grow noisier at
            every step, or has one step.
    """

    def __init__(self, schedule: NoiseSchedule):
        a = schedule.gamma**2
        before = torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])
        self.beta = 1 - a / before
        _check(schedule, self.beta)
        self.clean = before.sqrt() * self.beta / (1 - a)
        self.noisy = (1 - self.beta).sqrt() * (1 - before) / (1 - a)
        self.beta_tilde = self.beta * (1 - before) / (1 - a)
        self.log_beta = self.beta.log()
        self.log_beta_tilde = torch.cat([self.beta_tilde[1:2], self.beta_tilde[1:]]).log()

    def mean(self, x0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Return the mean clean x_0 + noisy x_t, (B, ...); at t = 0 it is x_0."""
        return self.at(self.clean, level, x0) * x0 + self.at(self.noisy, level, x0) * x_t

    @staticmethod
    def at(table: Tensor, level: NoiseLevel, like: Tensor) -> Tensor:
        """Return a table at `level`, float32, shaped to multiply `like`, (B, ...)."""
        return expand(lookup(table, level.t).float(), like)


def _check(schedule: NoiseSchedule, beta: Tensor) -> None:
    name = type(schedule).__name__
    if not torch.allclose(schedule.gamma**2 + schedule.sigma**2, torch.ones_like(beta), rtol=0, atol=1e-9):
        raise ConfigError(
            "schedule",
            name,
            "does not preserve variance (gamma^2 + sigma^2 = 1); use ddpm_linear, cosine or linear_gamma2",
        )
    if schedule.T < 2 or not (beta > 0).all():
        raise ConfigError("schedule", name, "must have two steps or more, and each must add noise")

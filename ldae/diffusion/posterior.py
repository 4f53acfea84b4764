"""q(x_{t-1} | x_t, x_0): one step back, when the clean signal is known (Sec. 2, arXiv 2006.11239)."""

from __future__ import annotations

import torch
from torch import Tensor

from ldae.diffusion.schedules import NoiseSchedule
from ldae.errors import ConfigError
from ldae.types import NoiseLevel, expand


class Posterior:
    """N(clean x_0 + noisy x_t, beta_tilde) of a variance-preserving schedule; tables (T,) float64.

    With a_t = gamma_t^2, a_{-1} = 1, alpha_t = a_t / a_{t-1}, beta_t = 1 - alpha_t (Eq. 6 and 7, arXiv 2006.11239):
    clean = sqrt(a_{t-1}) beta_t / (1 - a_t), noisy = sqrt(alpha_t) (1 - a_{t-1}) / (1 - a_t),
    beta_tilde = beta_t (1 - a_{t-1}) / (1 - a_t).

    Attributes:
        log_beta: ln beta_t, the widest that one step back can sensibly be.
        log_beta_tilde: ln beta_tilde_t, the narrowest; at t = 0, where beta_tilde is 0, that of t = 1.

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
        """clean x_0 + noisy x_t, shaped like both, (B, ...). At t = 0 it is x_0."""
        return self.at(self.clean, level, x0) * x0 + self.at(self.noisy, level, x0) * x_t

    @staticmethod
    def at(table: Tensor, level: NoiseLevel, like: Tensor) -> Tensor:
        """A table's numbers at `level`, float32, shaped to multiply `like`, (B, ...)."""
        return expand(table[level.t.cpu()].float().to(like.device), like)


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

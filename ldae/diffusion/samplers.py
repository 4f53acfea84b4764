"""Samplers: step rules, and the loop over the steps of a trajectory.

A rule is a function of two noise levels, so it applies to any schedule, any spacing and any (gamma, sigma).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Fraction
from ldae.diffusion.corruptions.base import Corruption, State
from ldae.diffusion.posterior import StepBack
from ldae.diffusion.trajectory import CLEAN, Predict, Prediction, SamplingStep

# (x, its step) -> x of the constrained set, at the same noise level
Constraint = Callable[[Tensor, SamplingStep], Tensor]
# called after each step with (its index, the step reached, x there, predicted x0)
StepCallback = Callable[[int, SamplingStep, Tensor, Tensor], None]


class Degradation:
    """Degradation operator D(x, step) of a batch, its random state fixed for the whole trajectory.

    Args:
        corruption: x0 -> x_t.
        state: random state of the corruption for the images of the batch.
    """

    def __init__(self, corruption: Corruption, state: State):
        self.corruption, self.state = corruption, state

    def __call__(self, x: Tensor, step: SamplingStep) -> Tensor:
        """Degrade x, (B, ...), to `step`; the clean step returns it unchanged."""
        return x if step == CLEAN else self.corruption.at(x, step.level(x), self.state)


class StepRule(ABC):
    """Update from a noisier level to a cleaner one."""

    @abstractmethod
    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        """Return x at the step `then`, (B, ...).

        Args:
            x: (B, ...) at the step `now`.
            prediction: of the network at x.
            now: the noise level of x.
            then: the next, cleaner level.
            rng: of the noise; used only where noise is added.

        Raises:
            ValueError: `then` is noisier than `now`.
        """

    def bind(self, degrade: Callable[[Tensor, SamplingStep], Tensor]) -> StepRule:
        """Return the rule with its degradation operator D(x, step); rules without one return themselves."""
        return self

    def select(self, trajectory: Sequence[SamplingStep]) -> Sequence[SamplingStep]:
        """Return the steps of a trajectory that the rule visits."""
        return trajectory


class Ancestral(StepRule):
    """x_then ~ N(mean of the posterior with the predicted x0, e^log_variance) (Alg. 2, arXiv 2006.11239).

    The mean is that of q(x_then | x_now, x_0); the formula in eps differs from it once x0 is clipped. No noise is added
    on the step to sigma = 0.
    """

    @abstractmethod
    def log_variance(self, prediction: Prediction, back: StepBack) -> Tensor:
        """Return the log variance of a reverse step: a scalar or (B, ...)."""

    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        back = StepBack.between(now, then)
        mean = back.mean(prediction.x0, x)
        if back.beta_tilde == 0:
            return mean
        return mean + torch.exp(self.log_variance(prediction, back) / 2) * rng.normal(x.shape)


class FixedSmallVariance(Ancestral):
    """Variance beta_tilde, exact for data that is one point ("fixedsmall", Sec. 3.2, arXiv 2006.11239)."""

    def log_variance(self, prediction: Prediction, back: StepBack) -> Tensor:
        """Return ln beta_tilde of the step, ()."""
        return _ln(back.beta_tilde)


class FixedLargeVariance(Ancestral):
    """Variance beta, exact for data of unit variance ("fixedlarge", Sec. 3.2, arXiv 2006.11239).

    Over a shortened sequence these are the sigma-hat rows of DDIM (Sec. 5, arXiv 2010.02502): the posterior's mean with
    more noise than the posterior has. SR3's sampler (Alg. 2, arXiv 2104.07636). The likelihood of the final step uses
    beta_tilde of the step before, as the published code does.
    """

    def log_variance(self, prediction: Prediction, back: StepBack) -> Tensor:
        """Return ln beta of the step, ()."""
        return _ln(back.beta_tilde if back.final else back.beta)


class LearnedVariance(Ancestral):
    """Log variance f ln beta + (1 - f) ln beta_tilde with the network's f (Eq. 15, arXiv 2102.09672).

    beta and beta_tilde are those of the step between the two levels, which a shortened sequence makes larger.
    """

    def log_variance(self, prediction: Prediction, back: StepBack) -> Tensor:
        """Return the log variance, (B, ...).

        Raises:
            ConfigError: the network has no learned variance.
        """
        if prediction.interpolation is None:
            raise ConfigError("sampler", "LearnedVariance", "needs a learned variance; use sampler=ddpm or ddim")
        return prediction.interpolation * _ln(back.beta) + (1 - prediction.interpolation) * _ln(back.beta_tilde)


class DDIM(StepRule):
    """gamma_then x0 + sqrt(sigma_then^2 - s^2) eps + s z, s = eta sqrt(beta_tilde) (Eq. 12 and 16, arXiv 2010.02502).

    eps is (x - gamma x0) / sigma, so clipping x0 changes it too. A learned variance is ignored.

    Args:
        eta: 0 is deterministic, 1 is ancestral sampling with beta_tilde.
    """

    def __init__(self, eta: Fraction = 0.0):
        self.eta = eta

    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        back = StepBack.between(now, then, self.eta)
        mean, s = back.mean(prediction.x0, x), self.eta * math.sqrt(back.beta_tilde)
        return mean + s * rng.normal(x.shape) if s else mean


class Cold(StepRule):
    """Rule that degrades the predicted x0 again by the corruption; deterministic (arXiv 2208.09392)."""

    def __init__(self) -> None:
        self.degrade: Callable[[Tensor, SamplingStep], Tensor] = _missing

    def bind(self, degrade: Callable[[Tensor, SamplingStep], Tensor]) -> Cold:
        """Return a rule of this class with the degradation operator D(x, step)."""
        rule = type(self)()
        rule.degrade = degrade
        return rule


class NaiveColdSampling(Cold):
    """D(x0, then), independent of x (Alg. 1, arXiv 2208.09392)."""

    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return self.degrade(prediction.x0, then)


class ImprovedColdSampling(Cold):
    """x - D(x0, now) + D(x0, then) (Alg. 2, arXiv 2208.09392): the residual x - D(x0, now) is kept.

    With D(x, step) = gamma x + sigma z and z = (x - gamma_now x0) / sigma_now the first two terms cancel and it is
    `DDIM` with eta = 0, the paper's sampling with estimated noise. With one z for the whole trajectory (a `Degradation`
    of Gaussian noise) it is the paper's sampling with fixed noise.
    """

    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return x - self.degrade(prediction.x0, now) + self.degrade(prediction.x0, then)


class Direct(StepRule):
    """Prediction at the first step, in one call of the network."""

    def select(self, trajectory: Sequence[SamplingStep]) -> Sequence[SamplingStep]:
        """Return the first and the last step of a trajectory."""
        return [*trajectory[:1], *trajectory[1:][-1:]]

    def __call__(
        self, x: Tensor, prediction: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return prediction.x0


@torch.no_grad()
def sample(
    predict: Predict,
    rule: StepRule,
    x: Tensor,
    trajectory: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    clip: bool = False,
    constrain: Constraint | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample along a trajectory, from x at its first step to x at its last; a single step returns x unchanged.

    A chain can be continued: pass `trajectory[k:]`, x at step k, and `rng` in the state that it had there.

    Args:
        predict: (x, step) -> prediction of the network; step.t is the schedule's t, not the position in the trajectory.
        rule: the update of each step.
        x: (B, ...) at trajectory[0].
        trajectory: noisiest step first, usually ending with CLEAN.
        rng: of the noise of the whole chain.
        clip: clamp every predicted x0 to [-1, 1]; for pixels, never for latents.
        constrain: replaces x after each step, at the same noise level.
        callback: called after each step.

    Returns:
        (B, ...) at trajectory[-1].
    """
    for index, (now, then) in enumerate(pairwise(rule.select(trajectory))):
        prediction = predict(x, now)
        if clip:
            prediction = replace(prediction, x0=prediction.x0.clamp(-1, 1))
        x = rule(x, prediction, now, then, rng)
        if constrain is not None:
            x = constrain(x, then)
        if callback is not None:
            callback(index, then, x, prediction.x0)
    return x


def initial_noise(shape: Sequence[int], step: SamplingStep, rng: BatchGenerator) -> Tensor:
    """Draw x_T ~ N(0, gamma^2 + sigma^2), the distribution of unit-variance Gaussian data at `step`."""
    return math.hypot(step.gamma, step.sigma) * rng.normal(shape)


def add_noise(x0: Tensor, step: SamplingStep, rng: BatchGenerator) -> Tensor:
    """Noise a guide x0, (B, ...), to `step` (Sec. 3, arXiv 2108.01073); the clean step returns x0."""
    return step.mixed(x0, rng.normal(x0.shape))


def keep_region(x0: Tensor, eps: Tensor, keep: Tensor) -> Constraint:
    """Return a constraint that sets x to gamma x0 + sigma eps where `keep` is 1 (arXiv 2108.01073).

    Args:
        x0: (B, C, H, W) the image that is kept.
        eps: its noise, one and the same at every step.
        keep: 0 or 1, broadcast to x0, e.g. (B, 1, H, W).
    """
    return lambda x, step: torch.where(keep.bool(), step.mixed(x0, eps), x)


def _ln(variance: float) -> Tensor:
    return torch.tensor(math.log(variance), dtype=torch.float64)


def _missing(x: Tensor, step: SamplingStep) -> Tensor:
    raise ConfigError("sampler", "cold", "degrades its predictions; bind it: rule.bind(Degradation(corruption, state))")

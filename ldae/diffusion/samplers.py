"""From noise, or from anything degraded, to something clean: step rules, and the one loop that takes the steps.

A rule works everything out from two stages, so that any schedule, any spacing and any (gamma, sigma) will do.
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

# (x, stage it has just come to) -> what to go on with
Amend = Callable[[Tensor, SamplingStep], Tensor]
# told (index of the step, stage it came to, x there, predicted x0) after each step
Watch = Callable[[int, SamplingStep, Tensor, Tensor], None]


class Degrade:
    """D(x, stage) for one batch: what is random in a corruption was drawn once and holds for the whole trajectory.

    Args:
        corruption: x0 -> x_t.
        state: what was drawn for the images of the batch.
    """

    def __init__(self, corruption: Corruption, state: State):
        self.corruption, self.state = corruption, state

    def __call__(self, x: Tensor, stage: SamplingStep) -> Tensor:
        """x (B, ...) degraded to `stage`; the clean stage leaves it as it is."""
        return x if stage == CLEAN else self.corruption.at(x, stage.level(x), self.state)


class StepRule(ABC):
    """One step of a sampler."""

    @abstractmethod
    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        """x at the stage `then`, (B, ...).

        Args:
            x: (B, ...) at the stage `now`.
            found: what the network says of it.
            then: the next, cleaner stage.
            draws: random numbers; taken only where noise is added.

        Raises:
            ValueError: `then` is noisier than `now`.
        """

    def bound(self, degrade: Callable[[Tensor, SamplingStep], Tensor]) -> StepRule:
        """The rule with D(x, stage) at hand, if it asks for one."""
        return self

    def route(self, stages: Sequence[SamplingStep]) -> Sequence[SamplingStep]:
        """Those of the stages that the rule goes through."""
        return stages


class Ancestral(StepRule):
    """x_then ~ N(mean of the posterior with the predicted x0, e^log_variance) (Alg. 2, arXiv 2006.11239).

    The mean is that of q(x_then | x_now, x_0), not the formula in eps, which is another one once x0 is clipped. No
    noise is added on the step to where there is none (sigma = 0).
    """

    @abstractmethod
    def log_variance(self, found: Prediction, back: StepBack) -> Tensor:
        """ln of the variance of a step: a scalar or (B, ...)."""

    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        back = StepBack.between(now, then)
        mean = back.mean(found.x0, x)
        if back.beta_tilde == 0:
            return mean
        return mean + torch.exp(self.log_variance(found, back) / 2) * rng.normal(x.shape)


class Small(Ancestral):
    """Variance beta_tilde, right for data that is one point ("fixedsmall", Sec. 3.2, arXiv 2006.11239)."""

    def log_variance(self, found: Prediction, back: StepBack) -> Tensor:
        return _ln(back.beta_tilde)


class Large(Ancestral):
    """Variance beta, right for data of unit variance ("fixedlarge", Sec. 3.2, arXiv 2006.11239).

    Over a shortened sequence these are the sigma-hat rows of DDIM (Sec. 5, arXiv 2010.02502): the posterior's mean,
    with more noise than goes with it. SR3 samples so (Alg. 2, arXiv 2104.07636). For the likelihood of the final step
    beta_tilde of the step before serves better, and is what the published code has.
    """

    def log_variance(self, found: Prediction, back: StepBack) -> Tensor:
        return _ln(back.beta_tilde if back.final else back.beta)


class Learned(Ancestral):
    """The network says where between the two it lies: f ln beta + (1 - f) ln beta_tilde (Eq. 15, arXiv 2102.09672).

    beta and beta_tilde are those of the step that is taken, a long one over a shortened sequence.
    """

    def log_variance(self, found: Prediction, back: StepBack) -> Tensor:
        """(B, ...).

        Raises:
            ConfigError: the network did not learn it.
        """
        if found.interpolation is None:
            raise ConfigError("sampler", "Learned", "needs a variance that was learned; use sampler=ddpm or ddim")
        return found.interpolation * _ln(back.beta) + (1 - found.interpolation) * _ln(back.beta_tilde)


class DDIM(StepRule):
    """gamma_then x0 + sqrt(sigma_then^2 - s^2) eps + s z, s = eta sqrt(beta_tilde) (Eq. 12 and 16, arXiv 2010.02502).

    eps is what x and the predicted x0 leave over, so it changes along with an x0 that was clipped. A learned variance
    is not asked for.

    Args:
        eta: 0 draws nothing, 1 is ancestral sampling with beta_tilde.
    """

    def __init__(self, eta: Fraction = 0.0):
        self.eta = eta

    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        back = StepBack.between(now, then, self.eta)
        mean, s = back.mean(found.x0, x), self.eta * math.sqrt(back.beta_tilde)
        return mean + s * rng.normal(x.shape) if s else mean


class Cold(StepRule):
    """Degrades the prediction again, with the corruption itself (arXiv 2208.09392). Draws nothing."""

    def __init__(self) -> None:
        self.degrade: Callable[[Tensor, SamplingStep], Tensor] = _missing

    def bound(self, degrade: Callable[[Tensor, SamplingStep], Tensor]) -> Cold:
        made = type(self)()
        made.degrade = degrade
        return made


class Restart(Cold):
    """D(x0, then) (Alg. 1, arXiv 2208.09392): forgets what x was."""

    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return self.degrade(found.x0, then)


class Improved(Cold):
    """x - D(x0, now) + D(x0, then) (Alg. 2, arXiv 2208.09392): what was added to x beside D stays.

    With D(x, stage) = gamma x + sigma z and z estimated from x itself, z = (x - gamma_now x0) / sigma_now, the first
    two cancel and it is `DDIM` with eta = 0: the paper's sampling with estimated noise. With a z kept from the start
    (a `Degrade` of Gaussian noise) it is the one with fixed noise.
    """

    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return x - self.degrade(found.x0, now) + self.degrade(found.x0, then)


class Direct(StepRule):
    """The prediction from the first stage, taken as it is: one call of the network."""

    def route(self, stages: Sequence[SamplingStep]) -> Sequence[SamplingStep]:
        return [*stages[:1], *stages[1:][-1:]]

    def __call__(
        self, x: Tensor, found: Prediction, now: SamplingStep, then: SamplingStep, rng: BatchGenerator
    ) -> Tensor:
        return found.x0


@torch.no_grad()
def sample(
    predict: Predict,
    rule: StepRule,
    x: Tensor,
    stages: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    clip: bool = False,
    amend: Amend | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Goes through the stages from x at the first to x at the last. A single stage leaves x as it is.

    A chain may be begun anywhere: with `stages[k:]`, its x and draws in the state that they had, it goes on.

    Args:
        predict: (x, stage) -> what the network says; told the schedule's own t, never a position in the sequence.
        rule: from one stage to the next.
        x: (B, ...) at stages[0].
        stages: ever cleaner; as a rule the last is CLEAN.
        draws: one object for the whole chain, drawn from step by step.
        clip: holds every predicted x0 to [-1, 1]; for pixels, never for latents.
        amend: overwrites x after each step, at the level that it then has.
        watch: told of each step when it is done.
    """
    way = rule.route(stages)
    for index, (now, then) in enumerate(pairwise(way)):
        found = predict(x, now)
        if clip:
            found = replace(found, x0=found.x0.clamp(-1, 1))
        x = rule(x, found, now, then, rng)
        if amend is not None:
            x = amend(x, then)
        if watch is not None:
            watch(index, then, x, found.x0)
    return x


def start(shape: Sequence[int], stage: SamplingStep, rng: BatchGenerator) -> Tensor:
    """Where sampling from nothing starts: N(0, gamma^2 + sigma^2), what unit-variance data has at `stage`."""
    return math.hypot(stage.gamma, stage.sigma) * rng.normal(shape)


def noised(x0: Tensor, stage: SamplingStep, rng: BatchGenerator) -> Tensor:
    """Where sampling from a guide x0, (B, ...), starts (Sec. 3, arXiv 2108.01073). The clean stage gives x0 back."""
    return stage.mixed(x0, rng.normal(x0.shape))


def keeping(x0: Tensor, eps: Tensor, keep: Tensor) -> Amend:
    """Overwrites with gamma x0 + sigma eps, at the level after the step, where `keep` is 1 (arXiv 2108.01073).

    Args:
        x0: (B, C, H, W) what is kept.
        eps: its noise, one and the same at every step.
        keep: 0 or 1, broadcast to x0, e.g. (B, 1, H, W).
    """
    return lambda x, stage: torch.where(keep.bool(), stage.mixed(x0, eps), x)


def _ln(variance: float) -> Tensor:
    return torch.tensor(math.log(variance), dtype=torch.float64)


def _missing(x: Tensor, stage: SamplingStep) -> Tensor:
    raise ConfigError("sampler", "cold", "degrades its predictions; bind it by rule.bound(Degrade(corruption, state))")

"""The variational bound on -ln p(x0): what a sampler's chain gives as likelihood (Sec. 3, arXiv 2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.posterior import StepBack, discretised_nll, divergence
from ldae.diffusion.samplers import Ancestral
from ldae.diffusion.trajectory import Predict, Prediction, SamplingStep


@dataclass(frozen=True)
class Bound:
    """-ln p(x0) at most, in bits per number, of each image.

    Attributes:
        prior: (B,) L_T, what is left of x0 at the noisiest stage; nothing to learn.
        steps: (S, B) L_{t-1} of every step, in the order of the stages; the last is L_0, of 256 levels.
    """

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """(B,) the sum: negative log-likelihood at most."""
        return self.prior + self.steps.sum(0)


@torch.no_grad()
def nll_bound(
    predict: Predict,
    rule: Ancestral,
    x0: Tensor,
    stages: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    clip: bool = True,
) -> Bound:
    """The bound over all stages, one draw of the noise for each (Eq. 5, arXiv 2006.11239).

    Args:
        predict: (x, stage) -> what the network says.
        rule: whose variance the steps back have.
        x0: (B, ...) of the 256 levels on [-1, 1].
        stages: as for `sample`, to the clean one.
        draws: the noise.
        clip: holds every predicted x0 to [-1, 1].

    Raises:
        ConfigError: there is one step alone, or a stage other than the clean one without noise.
    """
    backs, found = steps_back(stages), []
    for now, back in zip(stages[:-1], backs, strict=True):
        x = now.mixed(x0, rng.normal(x0.shape))
        said = predict(x, now)
        if clip:
            said = replace(said, x0=said.x0.clamp(-1, 1))
        found.append(term(said, rule, x0, x, back))
    return Bound(prior(x0, stages[0]), torch.stack(found))


def prior(x0: Tensor, stage: SamplingStep) -> Tensor:
    """(B,) L_T: KL[q(x_T | x0) | what `start` draws], bits per number. x0 (B, ...), `stage` the noisiest."""
    end = torch.tensor([stage.sigma**2, stage.gamma**2 + stage.sigma**2], dtype=torch.float64).log()
    return _bits(divergence(stage.gamma * x0, end[0], torch.zeros_like(x0), end[1]))


def term(said: Prediction, rule: Ancestral, x0: Tensor, x: Tensor, back: StepBack) -> Tensor:
    """(B,) KL[q(x_then | x_now, x0) | p(x_then | x_now)], or -ln p(x0 | x) of the final step; bits per number.

    Args:
        said: of x.
        x0, x: the clean signal and that at the upper stage, (B, ...).
        back: of `steps_back`.
    """
    mean, log_variance = back.mean(said.x0, x), rule.log_variance(said, back)
    if back.final:
        return _bits(discretised_nll(x0, mean, log_variance))
    true = torch.tensor(back.beta_tilde, dtype=torch.float64).log()
    return _bits(divergence(back.mean(x0, x), true, mean, log_variance))


def steps_back(stages: Sequence[SamplingStep]) -> Sequence[StepBack]:
    """The steps between stages; the final one, whose beta_tilde is 0, has that of the step before.

    Raises:
        ConfigError: there is none before, or one without noise.
    """
    backs = [StepBack.between(now, then) for now, then in pairwise(stages)]
    if len(backs) < 2:
        raise ConfigError("spacing.count", len(backs), "is too few for a likelihood; use 2 or more")
    for back, then in zip(backs[:-1], stages[1:-1], strict=True):
        if back.beta_tilde == 0:
            raise ConfigError("t", then.t, "is reached without noise, but a likelihood needs some; use schedule=cosine")
    return [*backs[:-1], replace(backs[-1], beta_tilde=backs[-2].beta_tilde, final=True)]


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)

"""Variational bound on -ln p(x0) (Sec. 3, arXiv 2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.posterior import StepBack, discretised_nll, gaussian_kl
from ldae.diffusion.samplers import Ancestral
from ldae.diffusion.trajectory import Predict, Prediction, SamplingStep


@dataclass(frozen=True)
class Bound:
    """Upper bound of -ln p(x0) of each image, in bits per dimension.

    Attributes:
        prior: (B,) L_T, the KL divergence at the noisiest step; it has no parameters.
        steps: (S, B) L_{t-1} of every step, noisiest first; the last is L_0, of 256 levels.
    """

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """Return the bound, the sum of all terms, (B,)."""
        return self.prior + self.steps.sum(0)


@torch.no_grad()
def nll_bound(
    predict: Predict,
    rule: Ancestral,
    x0: Tensor,
    trajectory: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    clip: bool = True,
) -> Bound:
    """Compute the bound over all steps of a trajectory, with one noise sample per step (Eq. 5, arXiv 2006.11239).

    Args:
        predict: (x, step) -> the network's prediction.
        rule: gives the variance of the reverse steps.
        x0: (B, ...) of 256 levels on [-1, 1].
        trajectory: as for `sample`, ending at the clean image.
        rng: of the noise.
        clip: clamp every predicted x0 to [-1, 1].

    Raises:
        ConfigError: the trajectory has a single step, or a step without noise before the last.
    """
    backs, terms = reverse_steps(trajectory), []
    for now, back in zip(trajectory[:-1], backs, strict=True):
        x = now.mixed(x0, rng.normal(x0.shape))
        prediction = predict(x, now)
        if clip:
            prediction = replace(prediction, x0=prediction.x0.clamp(-1, 1))
        terms.append(step_bound(prediction, rule, x0, x, back))
    return Bound(prior_bound(x0, trajectory[0]), torch.stack(terms))


def prior_bound(x0: Tensor, step: SamplingStep) -> Tensor:
    """Return L_T = KL[q(x_T | x0) | p(x_T)], (B,) bits per dimension, p(x_T) that of `initial_noise`.

    Args:
        x0: (B, ...).
        step: the noisiest.
    """
    end = torch.tensor([step.sigma**2, step.gamma**2 + step.sigma**2], dtype=torch.float64).log()
    return _bits(gaussian_kl(step.gamma * x0, end[0], torch.zeros_like(x0), end[1]))


def step_bound(prediction: Prediction, rule: Ancestral, x0: Tensor, x: Tensor, back: StepBack) -> Tensor:
    """Return KL[q(x_then | x_now, x0) | p(x_then | x_now)], or -ln p(x0 | x) of the final step.

    Args:
        prediction: at x.
        rule: gives the variance of the reverse step.
        x0, x: the clean signal and the noisy one, (B, ...).
        back: of `reverse_steps`.

    Returns:
        (B,) bits per dimension.
    """
    mean, log_variance = back.mean(prediction.x0, x), rule.log_variance(prediction, back)
    if back.final:
        return _bits(discretised_nll(x0, mean, log_variance))
    true = torch.tensor(back.beta_tilde, dtype=torch.float64).log()
    return _bits(gaussian_kl(back.mean(x0, x), true, mean, log_variance))


def reverse_steps(trajectory: Sequence[SamplingStep]) -> Sequence[StepBack]:
    """Return the reverse steps of a trajectory; the final one, whose beta_tilde is 0, gets that of the step before.

    Raises:
        ConfigError: there is only one step, or a step before the last has no noise.
    """
    backs = [StepBack.between(now, then) for now, then in pairwise(trajectory)]
    if len(backs) < 2:
        raise ConfigError("spacing.count", len(backs), "is too few for a likelihood; use 2 or more")
    for back, then in zip(backs[:-1], trajectory[1:-1], strict=True):
        if back.beta_tilde == 0:
            raise ConfigError("t", then.t, "is reached without noise, but a likelihood needs some; use schedule=cosine")
    return [*backs[:-1], replace(backs[-1], beta_tilde=backs[-2].beta_tilde, final=True)]


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)

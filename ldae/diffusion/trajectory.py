"""The noise levels that a sampler visits, and what a network tells it at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldae.core.types import NoiseLevel
from ldae.diffusion.schedules import NoiseSchedule


@dataclass(frozen=True)
class SamplingStep:
    """One noise level of a trajectory, the same for all images of a batch; numbers are float64.

    Attributes:
        t: step of the schedule that the network was trained with, never the position in a shortened sequence; -1 for
            clean.
        gamma: scale of the clean signal.
        sigma: standard deviation of the noise.
    """

    t: int
    gamma: float
    sigma: float

    def level(self, like: Tensor) -> NoiseLevel:
        """The level of each image of a batch `like`, (B, ...), on its device."""
        filled = lambda value: torch.full((len(like),), value, device=like.device)  # noqa: E731
        return NoiseLevel(filled(self.t), filled(self.gamma), filled(self.sigma))

    def mixed(self, x0: Tensor, eps: Tensor) -> Tensor:
        """gamma x0 + sigma eps, shaped like both."""
        return self.gamma * x0 + self.sigma * eps


CLEAN = SamplingStep(-1, 1.0, 0.0)


@dataclass(frozen=True)
class Prediction:
    """What a network says at x_t.

    Attributes:
        x0: (B, ...) the clean signal as it takes it to be.
        share: (B, ...) f of a learned variance, ln variance = f ln beta + (1 - f) ln beta_tilde, or None.
    """

    x0: Tensor
    interpolation: Tensor | None = None


# (x at a stage, that stage) -> what the network says
Predict = Callable[[Tensor, SamplingStep], Prediction]


def stages(schedule: NoiseSchedule, steps: Tensor, trained: NoiseSchedule | None = None) -> Sequence[SamplingStep]:
    """The stages of `steps`, (S,) int64 decreasing, and after them the clean one.

    Args:
        trained: the schedule that the network was trained with, where `schedule` is another: t is then its step of the
            nearest level (of ln gamma^2 / sigma^2). What a network that is told gamma alone does not notice (SR3).
    """
    message = steps if trained is None or trained is schedule else _nearest_steps(schedule, steps, trained)
    pairs = zip(steps.tolist(), message.tolist(), strict=True)
    return [*(SamplingStep(t, float(schedule.gamma[s]), float(schedule.sigma[s])) for s, t in pairs), CLEAN]


def _nearest_steps(schedule: NoiseSchedule, steps: Tensor, trained: NoiseSchedule) -> Tensor:
    here, there = (
        torch.log(s.gamma.clamp(min=1e-150) ** 2) - torch.log(s.sigma.clamp(min=1e-150) ** 2)
        for s in (schedule, trained)
    )
    return (here[steps][:, None] - there).abs().argmin(1)


def nearest_stage(stages: Sequence[SamplingStep], t0: float, T: int) -> int:
    """Where in `stages` the noise is that of time t0 of the schedule: n = t0 T steps of noise, step n - 1 from zero.

    Goes by steps of the schedule, not of the sequence, so that the level does not change with the number of stages
    (Sec. 3, arXiv 2108.01073). t0 = 0 is the clean stage.

    Args:
        t0: in [0, 1].
        T: steps of the schedule.
    """
    return min(range(len(stages)), key=lambda k: abs(stages[k].t + 1 - t0 * T))


def nearest_signal(stages: Sequence[SamplingStep], alpha_bar: float) -> int:
    """Where in `stages` the signal's share gamma^2 / (gamma^2 + sigma^2) is nearest to `alpha_bar` in [0, 1]."""
    interpolation = lambda stage: stage.gamma**2 / max(stage.gamma**2 + stage.sigma**2, 1e-300)  # noqa: E731
    return min(range(len(stages)), key=lambda k: abs(interpolation(stages[k]) - alpha_bar))

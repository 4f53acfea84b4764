"""Noise levels that a sampler visits, and the prediction of a network at each."""

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
        """Return this level for each image of a batch `like`, (B, ...), on its device."""
        filled = lambda value: torch.full((len(like),), value, device=like.device)  # noqa: E731
        return NoiseLevel(filled(self.t), filled(self.gamma), filled(self.sigma))

    def mixed(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return gamma x0 + sigma eps, shaped like both."""
        return self.gamma * x0 + self.sigma * eps


CLEAN = SamplingStep(-1, 1.0, 0.0)


@dataclass(frozen=True)
class Prediction:
    """Prediction of a network at x_t.

    Attributes:
        x0: (B, ...) the predicted clean signal.
        interpolation: (B, ...) f of a learned variance, ln variance = f ln beta + (1 - f) ln beta_tilde, or None.
    """

    x0: Tensor
    interpolation: Tensor | None = None


# (x at a step, that step) -> prediction
Predict = Callable[[Tensor, SamplingStep], Prediction]


def build_trajectory(
    schedule: NoiseSchedule, steps: Tensor, trained: NoiseSchedule | None = None
) -> Sequence[SamplingStep]:
    """Return the trajectory over `steps` of a schedule, ending with the clean step.

    Args:
        schedule: gives gamma and sigma of each step.
        steps: (S,) int64, decreasing.
        trained: the schedule that the network was trained with, if it is another one: t is then its step whose
            ln gamma^2 / sigma^2 is nearest. A network conditioned on gamma alone (SR3) does not depend on it.
    """
    network_steps = steps if trained is None or trained is schedule else _match_steps(schedule, steps, trained)
    pairs = zip(steps.tolist(), network_steps.tolist(), strict=True)
    return [*(SamplingStep(t, float(schedule.gamma[s]), float(schedule.sigma[s])) for s, t in pairs), CLEAN]


def _match_steps(schedule: NoiseSchedule, steps: Tensor, trained: NoiseSchedule) -> Tensor:
    here, there = (
        torch.log(s.gamma.clamp(min=1e-150) ** 2) - torch.log(s.sigma.clamp(min=1e-150) ** 2)
        for s in (schedule, trained)
    )
    return (here[steps][:, None] - there).abs().argmin(1)


def nearest_step(trajectory: Sequence[SamplingStep], t0: float, T: int) -> int:
    """Return the index in `trajectory` of the step nearest to time t0, t = t0 T - 1; t0 = 0 is the clean step.

    t counts steps of the schedule, so that the level does not depend on the length of the trajectory (Sec. 3,
    arXiv 2108.01073).

    Args:
        trajectory: of `build_trajectory`.
        t0: in [0, 1].
        T: steps of the schedule.
    """
    return min(range(len(trajectory)), key=lambda k: abs(trajectory[k].t + 1 - t0 * T))


def nearest_signal(trajectory: Sequence[SamplingStep], alpha_bar: float) -> int:
    """Return the index in `trajectory` whose gamma^2 / (gamma^2 + sigma^2) is nearest to `alpha_bar` in [0, 1]."""
    signal = lambda step: step.gamma**2 / max(step.gamma**2 + step.sigma**2, 1e-300)  # noqa: E731
    return min(range(len(trajectory)), key=lambda k: abs(signal(trajectory[k]) - alpha_bar))

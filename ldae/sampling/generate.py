"""Generation with a trained denoiser: from noise, from a degraded image, from a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError, NonFiniteError
from ldae.core.rng import seed_of
from ldae.core.types import BatchGenerator, Cond, NoiseLevel
from ldae.denoisers.guidance import Guided
from ldae.diffusion.initial_states import InitialState
from ldae.diffusion.samplers import (
    Degradation,
    Direct,
    FixedLargeVariance,
    ImprovedColdSampling,
    LearnedVariance,
    StepCallback,
    StepRule,
    initial_noise,
    sample,
)
from ldae.diffusion.trajectory import Prediction, SamplingStep
from ldae.objectives.base import full_precision
from ldae.objectives.denoise import Denoise


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of a sampler.

    Attributes:
        rule: update of each step.
        trajectory: noisiest step first, the clean one last.
        clip: clamp the predicted x0 to [-1, 1] at every step; for pixels only.
        guidance: s of classifier-free guidance; 1 for none.
        precision: of the network's matrix products.
    """

    rule: StepRule
    trajectory: Sequence[SamplingStep]
    clip: bool = False
    guidance: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"


class Generator:
    """Sampler of a trained denoiser; an image is a function of (seed, index), not of its batch or process.

    Args:
        objective: trained, its network in eval mode.
        sampler: settings.
        seed: of all noise.
        init: initial state of Cold Diffusion; None for Gaussian noise.

    Raises:
        ConfigError: guidance of an unconditional network, clipping of latents, or a corruption that no sampler inverts.
    """

    def __init__(self, objective: Denoise, sampler: SamplerConfig, seed: int = 0, init: InitialState | None = None):
        self.objective, self.sampler, self.seed, self.init = objective, sampler, seed, init
        self.on_step: Callable[[], None] | None = None  # called before every pass through the network
        network = objective.denoiser
        if not objective.corruption.samplable:
            name = type(objective.corruption).__name__
            raise ConfigError("corruption", name, "is for pretraining alone; sample a run with corruption=gaussian")
        if sampler.guidance != 1:
            if not objective.task.classes:
                raise ConfigError("guidance", sampler.guidance, "needs a class-conditional network (task=labelled)")
            network = Guided(network, sampler.guidance, objective.output.shape[0])
        if sampler.clip and not objective.tokenizer.is_bounded:
            name = type(objective.tokenizer).__name__
            raise ConfigError(
                "clip", True, f"would cut the latents of {name}, which are not in [-1, 1]; use clip=false"
            )
        self.network = network

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return next(self.objective.denoiser.parameters()).device

    def passes(self, rule: StepRule | None = None, first: int = 0) -> int:
        """Return the number of passes through the network from step `first` to the end."""
        return len((rule or self.sampler.rule).select(self.sampler.trajectory[first:])) - 1

    def rng(self, index: Sequence[int]) -> BatchGenerator:
        """Return the random generator of the images at `index`, with a seed for each image."""
        return BatchGenerator([seed_of(self.seed, 3, i) for i in index], self.device)

    def precompute(self, cond: Cond | None) -> Cond | None:
        """Return `cond` with the features that are the same at every step."""
        return self.network.precompute(cond) if cond else cond

    @torch.no_grad()
    def predict(self, z: Tensor, step: SamplingStep, cond: Cond | None) -> Prediction:
        """Predict the clean latent at z, (B, d, h, w)."""
        return self.predict_at(z, step.level(z[:1]), cond)

    @torch.no_grad()
    def predict_at(self, z: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Prediction:
        """Predict the clean latent at z, (B, d, h, w), each image at its own noise level, or all at one."""
        if self.on_step is not None:
            self.on_step()
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.sampler.precision == "bf16"):
            return self.objective.predict(z, level, cond, self.network)

    @torch.no_grad()
    def initial_noise(self, rng: BatchGenerator, count: int) -> Tensor:
        """Draw the noise at the first step, (count, d, h, w)."""
        return initial_noise((count, *self.objective.tokenizer.shape), self.sampler.trajectory[0], rng)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        rng: BatchGenerator,
        cond: Cond | None = None,
        rule: StepRule | None = None,
        first: int = 0,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Sample the latent at the end of the trajectory from z at step `first`, (B, d, h, w)."""
        cond = self.precompute(cond)
        return sample(
            lambda x, step: self.predict(x, step, cond),
            rule or self.sampler.rule,
            z,
            self.sampler.trajectory[first:],
            rng,
            clip=self.sampler.clip,
            callback=callback,
        )

    @torch.no_grad()
    def to_image(self, z: Tensor) -> Tensor:
        """Decode a latent to an image (B, C, H, W), clipped to [0, 1].

        Raises:
            NonFiniteError: the latent is not finite.
        """
        if not z.isfinite().all():
            message = (
                "use precision=fp32, a smaller guidance=, or clip=true for images; else the weights are not finite"
            )
            raise NonFiniteError(f"what was sampled is not finite: {message}")
        with full_precision(z):
            return ((self.objective.tokenizer.decode(z) + 1) / 2).clamp(0, 1)

    def from_noise(
        self, index: Sequence[int], cond: Cond | None = None, callback: StepCallback | None = None
    ) -> Tensor:
        """Generate the images of numbers `index`, (B, C, H, W) in [0, 1], from noise or from `init`."""
        rng = self.rng(index)
        if self.init is not None:
            z, state = self.init.draw(len(index), rng)
            rule = self.sampler.rule.bind(Degradation(self.objective.corruption, state))
            return self.to_image(self.sample(z, rng, cond, rule=rule, callback=callback))
        return self.to_image(self.sample(self.initial_noise(rng, len(index)), rng, cond, callback=callback))


def default_sampler(objective: Denoise) -> StepRule:
    """Return the default step rule of an objective."""
    if objective.T == 1:
        return Direct()
    if objective.corruption.pixel_only:
        return ImprovedColdSampling()
    return LearnedVariance() if objective.learns_variance else FixedLargeVariance()

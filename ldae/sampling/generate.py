"""A trained denoiser as something that makes images: from noise, from a degraded image, from a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError, NonFiniteError
from ldae.core.rng import seed_of
from ldae.core.types import BatchGenerator, Cond
from ldae.denoisers.guidance import Guided
from ldae.diffusion.initial_states import InitialState
from ldae.diffusion.samplers import Degrade, Direct, Improved, Large, Learned, StepRule, Watch, sample, start
from ldae.diffusion.trajectory import Prediction, SamplingStep
from ldae.objectives.base import full_precision
from ldae.objectives.denoise import Denoise


@dataclass(frozen=True)
class SamplerConfig:
    """How a trajectory is taken.

    Attributes:
        rule: from one stage to the next.
        stages: noisiest first, the clean one last.
        clip: whether the prediction is held to [-1, 1] at every step; for pixels alone.
        guidance: s of classifier-free guidance; 1 for none.
        precision: of the network's matrix products.
    """

    rule: StepRule
    stages: Sequence[SamplingStep]
    clip: bool = False
    guidance: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"


class Generator:
    """Samples of a trained objective. An image is a function of (seed, its index): not of batches or processes.

    Args:
        objective: trained, its network in eval mode.
        walk: how.
        seed: of all noise.
        begin: where a cold generation begins; noise if None.

    Raises:
        ConfigError: guidance of a network that knows no classes, or clipped latents.
    """

    def __init__(self, objective: Denoise, sampler: SamplerConfig, seed: int = 0, init: InitialState | None = None):
        self.objective, self.sampler, self.seed, self.init = objective, sampler, seed, init
        self.on_step: Callable[[], None] | None = None  # called before every pass through the network
        network = objective.denoiser
        if sampler.guidance != 1:
            if not objective.task.classes:
                raise ConfigError("guidance", sampler.guidance, "needs a network that is told classes (task=labelled)")
            network = Guided(network, sampler.guidance, objective.output.shape[0])
        if sampler.clip and not objective.tokenizer.bounded:
            name = type(objective.tokenizer).__name__
            raise ConfigError("clip", True, f"would cut the latents of {name}, which know no [-1, 1]; use clip=false")
        self.network = network

    @property
    def device(self) -> torch.device:
        return next(self.objective.denoiser.parameters()).device

    def passes(self, rule: StepRule | None = None, first: int = 0) -> int:
        """Return the passes through the network from stage `first` to the end."""
        return len((rule or self.sampler.rule).route(self.sampler.stages[first:])) - 1

    def rng(self, index: Sequence[int]) -> BatchGenerator:
        """The random numbers of the images at `index`, each image its own."""
        return BatchGenerator([seed_of(self.seed, 3, i) for i in index], self.device)

    def prepared(self, cond: Cond | None) -> Cond | None:
        """`cond`, with what the network makes of it worked out once for all steps."""
        return self.network.prepared(cond) if cond else cond

    @torch.no_grad()
    def predict(self, z: Tensor, stage: SamplingStep, cond: Cond | None) -> Prediction:
        """What is taken for clean at z, (B, d, h, w)."""
        if self.on_step is not None:
            self.on_step()
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.sampler.precision == "bf16"):
            return self.objective.predict(z, stage.level(z), cond, self.network)

    @torch.no_grad()
    def noise(self, rng: BatchGenerator, count: int) -> Tensor:
        """Where sampling starts: (B, d, h, w)."""
        return start((count, *self.objective.tokenizer.shape), self.sampler.stages[0], rng)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        rng: BatchGenerator,
        cond: Cond | None = None,
        rule: StepRule | None = None,
        first: int = 0,
        watch: Watch | None = None,
    ) -> Tensor:
        """The latent at the end of the trajectory that starts with z at stage `first`, (B, d, h, w)."""
        message = self.prepared(cond)
        return sample(
            lambda x, stage: self.predict(x, stage, message),
            rule or self.sampler.rule,
            z,
            self.sampler.stages[first:],
            rng,
            clip=self.sampler.clip,
            watch=watch,
        )

    @torch.no_grad()
    def image(self, z: Tensor) -> Tensor:
        """A latent as an image (B, C, H, W), clipped to [0, 1].

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

    def from_noise(self, index: Sequence[int], cond: Cond | None = None, watch: Watch | None = None) -> Tensor:
        """The images of numbers `index`, (B, C, H, W) in [0, 1]: from noise, or from where a cold generation begins."""
        rng = self.rng(index)
        if self.init is not None:
            z, state = self.init.draw(len(index), rng)
            rule = self.sampler.rule.bound(Degrade(self.objective.corruption, state))
            return self.image(self.sample(z, rng, cond, rule=rule, watch=watch))
        return self.image(self.sample(self.noise(rng, len(index)), rng, cond, watch=watch))


def usual_rule(objective: Denoise) -> StepRule:
    """What a system is sampled with, unless another is chosen."""
    if objective.T == 1:
        return Direct()
    if objective.corruption.pixel_only:
        return Improved()
    return Learned() if objective.answers > 1 else Large()

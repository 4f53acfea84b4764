"""A trained denoiser as something that makes images: from noise, from a degraded image, from a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldae.counter import seed_of
from ldae.denoisers.guidance import Guided
from ldae.diffusion.samplers import Degrade, Direct, Improved, Large, Learned, StepRule, Watch, sample, start
from ldae.diffusion.starts import Start
from ldae.diffusion.trajectory import Prediction, Stage
from ldae.errors import ConfigError, NonFiniteError
from ldae.objectives.base import full_precision
from ldae.objectives.denoise import Denoise
from ldae.types import Cond, Draws


@dataclass(frozen=True)
class Walk:
    """How a trajectory is taken.

    Attributes:
        rule: from one stage to the next.
        stages: noisiest first, the clean one last.
        clip: whether the prediction is held to [-1, 1] at every step; for pixels alone.
        guidance: s of classifier-free guidance; 1 for none.
        precision: of the network's matrix products.
    """

    rule: StepRule
    stages: Sequence[Stage]
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

    def __init__(self, objective: Denoise, walk: Walk, seed: int = 0, begin: Start | None = None):
        self.objective, self.walk, self.seed, self.begin = objective, walk, seed, begin
        self.on_step: Callable[[], None] | None = None  # called before every pass through the network
        network = objective.denoiser
        if walk.guidance != 1:
            if not objective.task.classes:
                raise ConfigError("guidance", walk.guidance, "needs a network that is told classes (task=labelled)")
            network = Guided(network, walk.guidance, objective.output.shape[0])
        if walk.clip and not objective.tokenizer.bounded:
            name = type(objective.tokenizer).__name__
            raise ConfigError("clip", True, f"would cut the latents of {name}, which know no [-1, 1]; use clip=false")
        self.network = network

    @property
    def device(self) -> torch.device:
        return next(self.objective.denoiser.parameters()).device

    def passes(self, rule: StepRule | None = None, first: int = 0) -> int:
        """Return the passes through the network from stage `first` to the end."""
        return len((rule or self.walk.rule).route(self.walk.stages[first:])) - 1

    def draws(self, index: Sequence[int]) -> Draws:
        """The random numbers of the images at `index`, each image its own."""
        return Draws([seed_of(self.seed, 3, i) for i in index], self.device)

    def prepared(self, cond: Cond | None) -> Cond | None:
        """`cond`, with what the network makes of it worked out once for all steps."""
        return self.network.prepared(cond) if cond else cond

    @torch.no_grad()
    def predict(self, z: Tensor, stage: Stage, cond: Cond | None) -> Prediction:
        """What is taken for clean at z, (B, d, h, w)."""
        if self.on_step is not None:
            self.on_step()
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.walk.precision == "bf16"):
            return self.objective.predict(z, stage.level(z), cond, self.network)

    @torch.no_grad()
    def noise(self, draws: Draws, count: int) -> Tensor:
        """Where sampling starts: (B, d, h, w)."""
        return start((count, *self.objective.tokenizer.shape), self.walk.stages[0], draws)

    @torch.no_grad()
    def walked(
        self,
        z: Tensor,
        draws: Draws,
        cond: Cond | None = None,
        rule: StepRule | None = None,
        first: int = 0,
        watch: Watch | None = None,
    ) -> Tensor:
        """The latent at the end of the trajectory that starts with z at stage `first`, (B, d, h, w)."""
        told = self.prepared(cond)
        return sample(
            lambda x, stage: self.predict(x, stage, told),
            rule or self.walk.rule,
            z,
            self.walk.stages[first:],
            draws,
            clip=self.walk.clip,
            watch=watch,
        )

    @torch.no_grad()
    def image(self, z: Tensor) -> Tensor:
        """A latent as an image (B, C, H, W), clipped to [0, 1].

        Raises:
            NonFiniteError: the latent is not finite.
        """
        if not z.isfinite().all():
            told = "use precision=fp32, a smaller guidance=, or clip=true for images; else the weights are not finite"
            raise NonFiniteError(f"what was sampled is not finite: {told}")
        with full_precision(z):
            return ((self.objective.tokenizer.decode(z) + 1) / 2).clamp(0, 1)

    def from_noise(self, index: Sequence[int], cond: Cond | None = None, watch: Watch | None = None) -> Tensor:
        """The images of numbers `index`, (B, C, H, W) in [0, 1]: from noise, or from where a cold generation begins."""
        draws = self.draws(index)
        if self.begin is not None:
            z, state = self.begin.draw(len(index), draws)
            rule = self.walk.rule.bound(Degrade(self.objective.corruption, state))
            return self.image(self.walked(z, draws, cond, rule=rule, watch=watch))
        return self.image(self.walked(self.noise(draws, len(index)), draws, cond, watch=watch))


def usual_rule(objective: Denoise) -> StepRule:
    """What a system is sampled with, unless another is chosen."""
    if objective.T == 1:
        return Direct()
    if objective.corruption.of_images:
        return Improved()
    return Learned() if objective.variance.answers > 1 else Large()

"""Denoising: DiT, l-DAE and all of the path between them, one function of several parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldae.denoisers.base import Denoiser, Network
from ldae.diffusion.corruptions.base import Corruption
from ldae.diffusion.importance import Timesteps
from ldae.diffusion.noiseless import Steps
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.targets import Target, usable_steps
from ldae.diffusion.trajectory import Prediction
from ldae.diffusion.variance import Variance
from ldae.diffusion.weights import Weight
from ldae.errors import ConfigError
from ldae.objectives.base import Panel, Representing, full_precision
from ldae.objectives.panels import DenoisingPanel, FilterPanel
from ldae.objectives.residues import Metric
from ldae.objectives.spaces import InputSpace, OutputSpace
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer
from ldae.types import Batch, Cond, Draws, Metrics, NoiseLevel

BUCKETS = 8


class Denoise(Representing):
    """Corrupts the latent of an image and asks for what was clean.

    Args:
        task: batch -> (x0, cond).
        tokenizer: fitted and frozen.
        corruption, schedule: z0 -> z_t.
        input: what of z_t the network sees.
        output: what counts as clean.
        target: what the network predicts of it.
        variance: whether the network answers with the variance of a step back too.
        weight: lambda of the noise level.
        timesteps: which levels are trained at.
        metric: the residue's size.
        denoiser: the network.

    Raises:
        ConfigError: the network is no denoiser, target or variance need the noise where the answer is an image, or a
            weight is infinite.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        corruption: Corruption,
        schedule: NoiseSchedule,
        input: InputSpace,
        output: OutputSpace,
        target: Target,
        variance: Variance,
        weight: Weight,
        timesteps: Timesteps,
        metric: Metric,
        denoiser: Network,
    ):
        super().__init__(network=denoiser)
        if not isinstance(denoiser, Denoiser):
            raise ConfigError(
                "denoiser", type(denoiser).__name__, "takes no noise level; use a denoiser such as vit_128x8"
            )
        self.denoiser = denoiser
        self.task, self.corruption, self.schedule, self.T = task, corruption, schedule, schedule.T
        self.input, self.output, self.target = input, output, target
        self.variance, self.weight, self.metric = variance, weight, metric
        self.timesteps = self.memory = timesteps
        self.tokenizer = tokenizer.requires_grad_(False)
        self.image_shape = (3, *tokenizer.image_shape[1:])
        for group, part in (("target", target), ("variance", variance)):
            name = type(part).__name__
            if part.lives_with_noise and not output.latent:
                raise ConfigError(group, name, "is built from the noise, which is in the latent; use output=latent")
            if part.lives_with_noise and not corruption.mixes:
                kind = type(corruption).__name__
                raise ConfigError(
                    group, name, f"is built from noise, and {kind} adds none; use target=x0 variance=fixed"
                )
        if corruption.mixes and isinstance(schedule, Steps):
            told = f"has no noise, so {type(corruption).__name__} would leave every image as it is; use schedule=cosine"
            raise ConfigError("schedule", "Steps", told)
        if not usable_steps(schedule, target):
            told = f"determines x0 at no level of {type(schedule).__name__}; use target=x0"
            raise ConfigError("target", type(target).__name__, told)
        if not torch.isfinite(weight(schedule.at(torch.arange(schedule.T)))).all():
            raise ConfigError(
                "weight", type(weight).__name__, f"is infinite at a level of {type(schedule).__name__}; use another"
            )

    @property
    def usable(self) -> int:
        """How many steps of the schedule, from the cleanest on, have a prediction that determines x0."""
        return usable_steps(self.schedule, self.target)

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """lambda_t * metric(network(x_t, t), y), mean over the batch (Sec. 5, arXiv 2401.14404).

        A learned variance adds its own terms (Eq. 16, arXiv 2102.09672).
        """
        with full_precision(batch.images):
            x0, cond = self.task(batch)
            level, counts = self.timesteps.draw(self.schedule, len(x0), draws)
            stored = self.tokenizer.stored(x0) if batch.latents is None else batch.latents
            z0 = self.tokenizer.drawn(stored, draws)  # (B, d, h, w)
            state = self.corruption.draw(z0, draws)
            z_t = self.corruption.observed(z0, level, state)
            x_t = self.input.view(z_t)  # (B, C, H, W)
            y = self.target.of(self.output.clean(x0, z0), state, level)  # (B, C', H', W')
            told = self.task.in_training(cond, draws) if self.denoiser.training else cond
        out = self.denoiser(x_t, level, told)
        with full_precision(batch.images):
            out = out.float()
            terms = self.variance.bound(out, z0, z_t, level)
            losses = self.weight(level) * self.metric(self.variance.prediction(out), y)  # (B,)
            losses = sum(terms.values(), losses)
            self.timesteps.record(level.t, losses.detach())
            losses = losses if counts is None else counts * losses
        return losses.mean(), self._by_level(losses.detach(), level) | _means(terms)

    def describe(self, batch: Batch, draws: Draws) -> Mapping[str, list[float]]:
        level, _ = self.timesteps.draw(self.schedule, len(batch), draws)
        return {"t": level.t.tolist(), "gamma": level.gamma.tolist(), "sigma": level.sigma.tolist()}

    def predict(
        self, z_t: Tensor, level: NoiseLevel, cond: Cond | None = None, network: Denoiser | None = None
    ) -> Prediction:
        """What the network takes the clean latent to be, (B, d, h, w): all that a sampler sees of it.

        `network` stands in for the own one, e.g. to guide it.
        """
        answer, out = self._answer(z_t, level, cond, network or self.denoiser)
        with full_precision(z_t):
            return Prediction(self.output.to_latent(answer), self.variance.share(out))

    def _answer(self, z_t: Tensor, level: NoiseLevel, cond: Cond | None, network: Denoiser) -> tuple[Tensor, Tensor]:
        """The clean signal that the network answers with, in the space of its answers, and all that it said."""
        with full_precision(z_t):
            x_t = self.input.view(z_t)
        out = network(x_t, level, cond).float()
        with full_precision(z_t):
            told, noised = self.variance.prediction(out), z_t if self.output.latent else x_t
            return self.target.to_x0(told, noised, level), out

    def clean_input(self, images: Tensor, level: NoiseLevel, draws: Draws | None) -> Tensor:
        """What the network is shown of images (B, 3, H, W) in [0, 1]; noised at `level` if there are draws."""
        with full_precision(images):
            z = self.tokenizer.encode(self.task.reading(images)[0])
            z = self.corruption.observed(z, level, self.corruption.draw(z, draws)) if draws else z
            return self.input.view(z)

    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        draws: Draws | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        level = self.schedule.at(torch.full((images.shape[0],), t, device=images.device))
        _, cond = self.task.reading(images)
        return self.denoiser.encode(self.clean_input(images, level, draws), level, cond, layers=layers)

    def panels(self, batch: Batch, every: int) -> Sequence[Panel]:
        return [FilterPanel(self.tokenizer), DenoisingPanel(self, batch, every)]

    @torch.no_grad()
    def denoised(self, batch: Batch, level: NoiseLevel, draws: Draws) -> tuple[Tensor, Tensor]:
        """The noised images and the network's answer, both (B, C, H, W) in [-1, 1] and beyond, unclipped.

        The noised ones are latents inverted into image space, noise in the latent included. No class is told.
        """
        with full_precision(batch.images):
            x0, cond = self.task(batch)
            z0 = self.tokenizer.encode(x0)
            z_t = self.corruption.observed(z0, level, self.corruption.draw(z0, draws))
        answer, _ = self._answer(z_t, level, replace(cond, label=None), self.denoiser)
        with full_precision(batch.images):
            return self.tokenizer.decode(z_t), self.output.to_image(answer)

    def _by_level(self, losses: Tensor, level: NoiseLevel) -> dict[str, tuple[Tensor, Tensor]]:
        bucket = level.t * BUCKETS // self.schedule.T  # (B,)
        zeros = torch.zeros(BUCKETS, device=losses.device)
        return {"loss_level": (zeros.index_add(0, bucket, losses), zeros.index_add(0, bucket, torch.ones_like(losses)))}


def _means(terms: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (term.detach().sum(), torch.ones_like(term).sum()) for name, term in terms.items()}

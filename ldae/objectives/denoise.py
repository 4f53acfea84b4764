"""Denoising: DiT, l-DAE and all of the path between them, one function of several parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond, Metrics, NoiseLevel
from ldae.denoisers.base import Denoiser, Network
from ldae.diffusion.corruptions.base import Corruption
from ldae.diffusion.schedules import NoiseSchedule, Steps
from ldae.diffusion.targets import Target, usable_steps
from ldae.diffusion.timesteps import Timesteps
from ldae.diffusion.trajectory import Prediction
from ldae.diffusion.weights import Weight
from ldae.objectives.base import PretrainingObjective, full_precision
from ldae.objectives.losses import Loss
from ldae.objectives.spaces import InputSpace, OutputSpace
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer

BUCKETS = 8


@dataclass(frozen=True)
class Process:
    """The way from z0 to z_t, and the levels that are trained at.

    Attributes:
        schedule: gamma_t and sigma_t.
        corruption: z0 and a level -> z_t.
        timesteps: draws the levels of a batch.
    """

    schedule: NoiseSchedule
    corruption: Corruption
    timesteps: Timesteps


@dataclass(frozen=True)
class Parameterization:
    """The spaces that the network works in, and the quantity that it predicts.

    Attributes:
        input: z_t -> the network's input.
        output: the space of the clean signal.
        target: the quantity that is predicted of it.
    """

    input: InputSpace
    output: OutputSpace
    target: Target


@dataclass(frozen=True)
class Criterion:
    """The loss of an image: lambda(level) * loss(prediction, target).

    Attributes:
        weight: lambda.
        loss: (out, y) -> (B,).
    """

    weight: Weight
    loss: Loss

    def __call__(self, out: Tensor, y: Tensor, level: NoiseLevel) -> Tensor:
        """out and y (B, C, H, W) float32 -> (B,)."""
        return self.weight(level) * self.loss(out, y)


class Denoise(PretrainingObjective):
    """Corrupt the latent of an image and predict the clean signal: l-DAE, DiT, and the path between them.

    Args:
        task: batch -> (x0, cond).
        tokenizer: fitted; frozen here.
        process: z0 -> z_t.
        parameterization: z_t -> the network's input; its answer -> the clean signal.
        criterion: the loss.
        denoiser: the network.

    Attributes:
        answers: channels of the network's answer for each channel of the prediction.

    Raises:
        ConfigError: the network is no denoiser, the target needs the noise where the answer is an image, or a weight
            is infinite.
    """

    tokenizer: Tokenizer
    answers = 1

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        process: Process,
        parameterization: Parameterization,
        criterion: Criterion,
        denoiser: Network,
    ):
        super().__init__(network=denoiser)
        self.check_network(type(denoiser))
        assert isinstance(denoiser, Denoiser)
        self.denoiser, self.task, self.criterion = denoiser, task, criterion
        self.schedule, self.corruption, self.T = process.schedule, process.corruption, process.schedule.T
        self.timesteps = self.memory = process.timesteps
        self.input, self.output, self.target = parameterization.input, parameterization.output, parameterization.target
        self.tokenizer = tokenizer.requires_grad_(False)
        self.image_shape = (3, *tokenizer.image_shape[1:])
        self._check()

    @classmethod
    def check_network(cls, network: type[Network]) -> None:
        if not issubclass(network, Denoiser):
            raise ConfigError("denoiser", network.__name__, "takes no noise level; use a denoiser such as vit_128x8")

    def _check(self) -> None:
        """Refuse combinations that cannot learn."""
        schedule, corruption = type(self.schedule).__name__, type(self.corruption).__name__
        if self.target.requires_noise:
            self.check_noise("target", type(self.target).__name__)
        if self.corruption.is_additive and isinstance(self.schedule, Steps):
            message = f"has no noise, so {corruption} would leave every image as it is; use schedule=cosine"
            raise ConfigError("schedule", "Steps", message)
        if not usable_steps(self.schedule, self.target):
            message = f"determines x0 at no level of {schedule}; use target=x0"
            raise ConfigError("target", type(self.target).__name__, message)
        if not torch.isfinite(self.criterion.weight(self.schedule.at(torch.arange(self.T)))).all():
            name = type(self.criterion.weight).__name__
            raise ConfigError("weight", name, f"is infinite at a level of {schedule}; use another")

    def check_noise(self, group: str, name: str) -> None:
        """Check that the noise exists, and in the space of the answer.

        Raises:
            ConfigError: naming the group that needs it.
        """
        if not self.output.latent:
            raise ConfigError(group, name, "is built from the noise, which is in the latent; use output=latent")
        if not self.corruption.is_additive:
            corruption = type(self.corruption).__name__
            raise ConfigError(group, name, f"is built from noise, and {corruption} adds none; use target=x0")

    @property
    def usable(self) -> int:
        """How many steps of the schedule, from the cleanest on, have a prediction that determines x0."""
        return usable_steps(self.schedule, self.target)

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return lambda_t * loss(network(x_t, t), y), mean over the batch (Sec. 5, arXiv 2401.14404)."""
        with full_precision(batch.images):
            x0, cond = self.task(batch)  # (B, C, H, W) in [-1, 1]
            level, importance = self.timesteps.draw(self.schedule, len(x0), rng)
            params = self.tokenizer.posterior_params(x0) if batch.latents is None else batch.latents
            z0 = self.tokenizer.sample_posterior(params, rng)  # (B, d, h, w)
            state = self.corruption.draw(z0, rng)
            z_t = self.corruption.observed(z0, level, state)
            x_t = self.input.view(z_t)  # (B, C, H, W)
            y = self.target.of(self.output.clean(x0, z0), state, level)  # (B, C', H', W')
            cond = self.task.in_training(cond, rng) if self.denoiser.training else cond
        out = self.denoiser(x_t, level, cond)
        with full_precision(batch.images):
            losses, terms = self.losses(out.float(), y, z0, z_t, level)  # (B,)
            self.timesteps.record(level.t, losses.detach())
            losses = losses if importance is None else importance * losses
        return losses.mean(), self._by_level(losses.detach(), level) | _means(terms)

    def losses(
        self, out: Tensor, y: Tensor, z0: Tensor, z_t: Tensor, level: NoiseLevel
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each image, (B,), and the terms of it that are logged by name, each (B,)."""
        return self.criterion(out, y, level), {}

    def prediction(self, out: Tensor) -> Tensor:
        """Return the part of an answer (B, answers * C, H, W) that predicts the target, (B, C, H, W)."""
        return out

    def interpolation(self, out: Tensor) -> Tensor | None:
        """Return the learned share f of ln beta in the variance of a step back, (B, C, H, W); None: not learned."""
        return None

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        level, _ = self.timesteps.draw(self.schedule, len(batch), rng)
        return {"t": level.t.tolist(), "gamma": level.gamma.tolist(), "sigma": level.sigma.tolist()}

    def predict(
        self, z_t: Tensor, level: NoiseLevel, cond: Cond | None = None, network: Denoiser | None = None
    ) -> Prediction:
        """What the network takes the clean latent to be, (B, d, h, w): all that a sampler sees of it.

        `network` stands in for the own one, e.g. to guide it.
        """
        answer, out = self._answer(z_t, level, cond, network or self.denoiser)
        with full_precision(z_t):
            return Prediction(self.output.to_latent(answer), self.interpolation(out))

    def _answer(self, z_t: Tensor, level: NoiseLevel, cond: Cond | None, network: Denoiser) -> tuple[Tensor, Tensor]:
        """The clean signal that the network answers with, in the space of its answers, and all that it said."""
        with full_precision(z_t):
            x_t = self.input.view(z_t)
        out = network(x_t, level, cond).float()
        with full_precision(z_t):
            noised = z_t if self.output.latent else x_t
            return self.target.to_x0(self.prediction(out), noised, level), out

    def clean_input(self, images: Tensor, level: NoiseLevel, rng: BatchGenerator | None) -> Tensor:
        """What the network is shown of images (B, 3, H, W) in [0, 1]; noised at `level` if there are draws."""
        with full_precision(images):
            z = self.tokenizer.encode(self.task.reading(images)[0])
            z = self.corruption.observed(z, level, self.corruption.draw(z, rng)) if rng else z
            return self.input.view(z)

    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        rng: BatchGenerator | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        level = self.schedule.at(torch.full((images.shape[0],), t, device=images.device))
        _, cond = self.task.reading(images)
        return self.denoiser.encode(self.clean_input(images, level, rng), level, cond, layers=layers)

    @torch.no_grad()
    def denoised(self, batch: Batch, level: NoiseLevel, rng: BatchGenerator) -> tuple[Tensor, Tensor]:
        """The noised images and the network's answer, both (B, C, H, W) in [-1, 1] and beyond, unclipped.

        The noised ones are latents inverted into image space, noise in the latent included. No class is told.
        """
        with full_precision(batch.images):
            x0, cond = self.task(batch)
            z0 = self.tokenizer.encode(x0)
            z_t = self.corruption.observed(z0, level, self.corruption.draw(z0, rng))
        answer, _ = self._answer(z_t, level, replace(cond, label=None), self.denoiser)
        with full_precision(batch.images):
            return self.tokenizer.decode(z_t), self.output.to_image(answer)

    def _by_level(self, losses: Tensor, level: NoiseLevel) -> dict[str, tuple[Tensor, Tensor]]:
        bucket = level.t * BUCKETS // self.schedule.T  # (B,)
        zeros = torch.zeros(BUCKETS, device=losses.device)
        return {"loss_level": (zeros.index_add(0, bucket, losses), zeros.index_add(0, bucket, torch.ones_like(losses)))}


def _means(terms: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (term.detach().sum(), torch.ones_like(term).sum()) for name, term in terms.items()}

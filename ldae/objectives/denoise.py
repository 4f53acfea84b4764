"""Denoising: DiT, l-DAE and the path between them (arXiv 2401.14404)."""

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
from ldae.diffusion.timesteps import Timesteps, noise_free
from ldae.diffusion.trajectory import Prediction
from ldae.diffusion.weights import One, Weight
from ldae.objectives.base import PretrainingObjective, full_precision
from ldae.objectives.losses import Loss, PCAWeighted
from ldae.objectives.spaces import InputSpace, OutputSpace
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer

BUCKETS = 8  # of noise levels, in the logged losses


@dataclass(frozen=True)
class Process:
    """Corruption process z0 -> z_t, and the distribution of training levels.

    Attributes:
        schedule: gamma_t and sigma_t.
        corruption: (z0, level) -> z_t.
        timesteps: distribution of the levels of a batch.
    """

    schedule: NoiseSchedule
    corruption: Corruption
    timesteps: Timesteps


@dataclass(frozen=True)
class Parameterization:
    """Input and output space of the network, and the quantity that it predicts.

    Attributes:
        input: z_t -> the network's input.
        output: the space of the clean signal.
        target: the predicted quantity.
    """

    input: InputSpace
    output: OutputSpace
    target: Target


@dataclass(frozen=True)
class Criterion:
    """Weighted loss of an image, lambda(level) * loss(prediction, target).

    Attributes:
        weight: lambda.
        loss: (out, y) -> (B,).
    """

    weight: Weight
    loss: Loss

    def __call__(self, out: Tensor, y: Tensor, level: NoiseLevel, hidden: Tensor | None = None) -> Tensor:
        """Return the weighted loss of each image, (B,), of out and y, (B, C, H, W) float32.

        Args:
            hidden: latent numbers that the loss is restricted to, bool and broadcastable to (B, d, h, w); None for all.
        """
        weights = self.weight(level).reshape(len(out), -1).mean(1)  # (B,), of one number or of those of the tokens
        return weights * self.loss(out, y, None if hidden is None else self.loss.hidden(hidden))


@dataclass(frozen=True)
class LossInputs:
    """Tensors of a batch for its loss, in addition to the output of the network and the target.

    Attributes:
        x0: (B, 3, H, W) images in [-1, 1].
        z0: (B, d, h, w) clean latents.
        z_t: (B, d, h, w) corrupted latents.
        level: their noise levels.
        hidden: latent numbers that the loss is restricted to, bool; None for all.
    """

    x0: Tensor
    z0: Tensor
    z_t: Tensor
    level: NoiseLevel
    hidden: Tensor | None


class Denoise(PretrainingObjective):
    """Corrupt the latent of an image and predict the clean signal: l-DAE, DiT, and the path between them.

    Args:
        task: batch -> (x0, cond).
        tokenizer: fitted; frozen here.
        process: z0 -> z_t.
        parameterization: z_t -> the network's input; its output -> the clean signal.
        criterion: the loss.
        denoiser: the network.

    Attributes:
        learns_variance: the network predicts the variance of the reverse step too.

    Raises:
        ConfigError: the network is no denoiser, the target needs the noise but the output is an image, or a weight is
            infinite.
    """

    tokenizer: Tokenizer
    learns_variance = False

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

    @staticmethod
    def output_channels(output: OutputSpace) -> int:
        """Return the number of channels of the network's output, at the height and width of the output space."""
        return output.shape[0]

    @classmethod
    def check_network(cls, network: type[Network]) -> None:
        """Raise ConfigError unless the network is a denoiser."""
        if not issubclass(network, Denoiser):
            raise ConfigError("denoiser", network.__name__, "takes no noise level; use a denoiser such as vit_128x8")

    def _check(self) -> None:
        """Check that the parts go together."""
        schedule, corruption = type(self.schedule).__name__, type(self.corruption).__name__
        if self.target.requires_noise:
            self.check_noise("target", type(self.target).__name__)
        if self.corruption.is_additive and isinstance(self.schedule, Steps):
            message = f"has no noise, so {corruption} would leave every image as it is; use schedule=cosine"
            raise ConfigError("schedule", "Steps", message)
        if self.timesteps.clean and self.target.requires_noise:
            message = "has images without noise, and the target is built from the noise; use target=x0"
            raise ConfigError("timesteps.clean", self.timesteps.clean, message)
        if self.timesteps.per_token:
            self._check_per_token()
        if self.corruption.hides and not (self.output.latent or isinstance(self.criterion.loss, PCAWeighted)):
            loss = type(self.criterion.loss).__name__
            message = f"cannot be restricted to the components that {corruption} masks; use output=latent"
            raise ConfigError("loss", loss, f"{message}, or loss=pca_weighted")
        if not usable_steps(self.schedule, self.target):
            message = f"determines x0 at no level of {schedule}; use target=x0"
            raise ConfigError("target", type(self.target).__name__, message)
        levels = self.schedule.at(torch.arange(self.T))
        drawn = [levels, noise_free(levels)] if self.timesteps.clean else [levels]
        weights = [self.criterion.weight(level) for level in drawn]
        if not torch.isfinite(torch.cat(weights)).all():
            name = type(self.criterion.weight).__name__
            raise ConfigError("weight", name, f"is infinite at a level of {schedule}; use another")

    def _check_per_token(self) -> None:
        """Check that the parts can be used with a noise level for each token."""
        self.check_noise("timesteps", "per_token")
        if getattr(self.denoiser, "level", None) is not None:
            message = "tells the network one level, and the tokens have many; use false"
            raise ConfigError("denoiser.noise_conditioning", True, message)
        if not isinstance(self.criterion.weight, One):
            name = type(self.criterion.weight).__name__
            raise ConfigError("weight", name, "weights images, and the levels are those of tokens; use weight=one")

    def check_noise(self, group: str, name: str) -> None:
        """Check that the noise is Gaussian and lies in the output space.

        Raises:
            ConfigError: naming the group that needs the noise.
        """
        if not self.output.latent:
            raise ConfigError(group, name, "is built from the noise, which is in the latent; use output=latent")
        if not self.corruption.is_additive:
            corruption = type(self.corruption).__name__
            raise ConfigError(group, name, f"is built from noise, and {corruption} adds none; use target=x0")

    @property
    def usable(self) -> int:
        """Return the number of steps, from the cleanest on, at which the prediction determines x0."""
        return usable_steps(self.schedule, self.target)

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return lambda_t * loss(network(x_t, t), y), mean over the batch (Sec. 5, arXiv 2401.14404)."""
        with full_precision(batch.images):
            level, importance = self.timesteps.draw(self.schedule, len(batch), rng)
        losses, terms = self.losses_at(batch, level, rng)
        with full_precision(batch.images):
            self.timesteps.record(level.t, losses.detach())
            losses = losses if importance is None else importance * losses
        return losses.mean(), self._by_level(losses.detach(), level) | _means(terms)

    def losses_at(self, batch: Batch, level: NoiseLevel, rng: BatchGenerator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return lambda_t * loss of each image at its level, (B,), and the terms of the loss to log, each (B,)."""
        with full_precision(batch.images):
            x0, cond = self.task(batch)  # (B, C, H, W) in [-1, 1]
            params = self.tokenizer.posterior_params(x0) if batch.latents is None else batch.latents
            z0 = self.tokenizer.sample_posterior(params, rng)  # (B, d, h, w)
            state = self.corruption.draw(z0, rng)
            z_t = self.corruption.corrupt(z0, level, state)
            x_t = self.input.view(z_t)  # (B, C, H, W)
            y = self.target.of(self.output.clean(x0, z0), state, level)  # (B, C', H', W')
            cond = self.task.augment_cond(cond, rng) if self.denoiser.training else cond
            masking = self.denoiser.draw_masking(len(x0), rng)
        out = self.denoiser(x_t, level, cond, *([] if masking is None else [masking]))
        with full_precision(batch.images):
            given = LossInputs(x0, z0, z_t, level, state.hidden)
            return self.losses(out.float(), y, given)

    def losses(self, out: Tensor, y: Tensor, given: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each image, (B,), and its terms to log, each (B,)."""
        return self.criterion(self.prediction(out), y, given.level, given.hidden), {}

    def prediction(self, out: Tensor) -> Tensor:
        """Return the prediction of the target, (B, C, H, W), in an output of the network."""
        return out

    def interpolation(self, out: Tensor) -> Tensor | None:
        """Return f of a learned variance, (B, C, H, W); None if the variance is fixed."""
        return None

    def describe(self, batch: Batch, rng: BatchGenerator) -> Mapping[str, list[float]]:
        """Return t, gamma and sigma of each image of a batch; means over its tokens where each has a level."""
        level, _ = self.timesteps.draw(self.schedule, len(batch), rng)
        numbers = {"t": level.t, "gamma": level.gamma, "sigma": level.sigma}
        means = {k: x if x.ndim == 1 else x.flatten(1).float().mean(1) for k, x in numbers.items()}
        return {name: values.tolist() for name, values in means.items()}

    def predict(
        self, z_t: Tensor, level: NoiseLevel, cond: Cond | None = None, network: Denoiser | None = None
    ) -> Prediction:
        """Predict the clean latent, (B, d, h, w), for samplers.

        Args:
            z_t: (B, d, h, w).
            level: of z_t.
            cond: condition of the network.
            network: replaces `denoiser`, for guidance.
        """
        clean, out = self._predict_clean(z_t, level, cond, network or self.denoiser)
        with full_precision(z_t):
            return Prediction(self.output.to_latent(clean), self.interpolation(out))

    def _predict_clean(
        self, z_t: Tensor, level: NoiseLevel, cond: Cond | None, network: Denoiser
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted clean signal in the output space, and the output of the network."""
        with full_precision(z_t):
            x_t = self.input.view(z_t)
        out = network(x_t, level, cond).float()
        with full_precision(z_t):
            noisy = z_t if self.output.latent else x_t
            return self.target.to_x0(self.prediction(out), noisy, level), out

    def encoder_input(self, images: Tensor, level: NoiseLevel, rng: BatchGenerator | None) -> tuple[Tensor, Cond]:
        """Return the network's input of images (B, 3, H, W) in [0, 1], noised at `level` with `rng`, and its condition.

        Without `rng` the input is clean.
        """
        with full_precision(images):
            x0, cond = self.task.from_images(images)
            z = self.tokenizer.encode(x0)
            z = self.corruption.corrupt(z, level, self.corruption.draw(z, rng)) if rng else z
            return self.input.view(z), cond

    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        rng: BatchGenerator | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        """Return the tokens of images (B, 3, H, W) in [0, 1] at step t, {layer: (B, N, D)}; `rng` noises them."""
        level = self.schedule.at(torch.full((1,), t, device=images.device))
        of_each = self.schedule.at(level.t.expand(images.shape[0]))
        x_t, cond = self.encoder_input(images, of_each, rng)
        return self.denoiser.encode(x_t, level, cond, layers=layers)

    @torch.no_grad()
    def denoise(self, batch: Batch, level: NoiseLevel, rng: BatchGenerator) -> tuple[Tensor, Tensor]:
        """Corrupt images and denoise them in one pass, without class labels.

        Returns:
            Corrupted latents decoded to images, and denoised images, (B, C, H, W) in [-1, 1] but unclipped.
        """
        with full_precision(batch.images):
            x0, cond = self.task(batch)
            z0 = self.tokenizer.encode(x0)
            z_t = self.corruption.corrupt(z0, level, self.corruption.draw(z0, rng))
        clean, _ = self._predict_clean(z_t, level, replace(cond, label=None), self.denoiser)
        with full_precision(batch.images):
            return self.tokenizer.decode(z_t), self.output.to_image(clean)

    def _by_level(self, losses: Tensor, level: NoiseLevel) -> dict[str, tuple[Tensor, Tensor]]:
        if self.timesteps.per_token:  # an image has all levels
            return {}
        bucket = level.t * BUCKETS // self.schedule.T  # (B,)
        zeros = torch.zeros(BUCKETS, device=losses.device)
        return {"loss_level": (zeros.index_add(0, bucket, losses), zeros.index_add(0, bucket, torch.ones_like(losses)))}


def _means(terms: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (term.detach().sum(), torch.ones_like(term).sum()) for name, term in terms.items()}

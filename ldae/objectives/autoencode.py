"""Training of convolutional tokenizers: pixel, perceptual, bottleneck and adversarial loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Metrics, TrainableModule
from ldae.nn.patch_gan import Discriminator
from ldae.nn.perceptual import Perceptual
from ldae.objectives.base import Objective, full_precision
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer
from ldae.tokenizers.conv_vae import ConvTokenizer

ERRORS = {"l1": F.l1_loss, "l2": F.mse_loss}
MAX_ADAPTIVE_WEIGHT = 1e4


class Autoencode(Objective):
    """Pixel error + perceptual distance + regulariser + lambda * adversarial loss (Eq. 4-7, arXiv 2012.09841).

    The error is a mean over an image. Latent diffusion sums it (and multiplies the perceptual distance by 3 H W); this
    is its loss divided by 3 H W. Without a perceptual network and a discriminator it is the loss of a VAE (step 3 of
    arXiv 2401.14404).

    Args:
        task: batch -> (x0, cond).
        tokenizer: a convolutional one.
        perceptual: frozen and trained, or None.
        discriminator: or None.
        pixel: mean absolute or mean squared error.

    Raises:
        ConfigError: the tokenizer is not convolutional.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        perceptual: Perceptual | None,
        discriminator: Discriminator | None,
        pixel: Literal["l1", "l2"] = "l2",
    ):
        if not isinstance(tokenizer, ConvTokenizer):
            raise ConfigError("tokenizer", type(tokenizer).__name__, "is not convolutional: it has a loss of its own")
        super().__init__(network=tokenizer)
        self.task, self.tokenizer, self.error = task, tokenizer, ERRORS[pixel]
        self.perceptual = perceptual.requires_grad_(False).eval() if perceptual is not None else None
        # in a dict, so that its parameters are not registered with the tokenizer's
        self.discriminators = {} if discriminator is None else {"discriminator": TrainDiscriminator(discriminator)}
        self.active: list[TrainDiscriminator] = []

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        """Return the tokenizer and, if there is one, the discriminator."""
        return {"tokenizer": self, **self.discriminators}

    def is_active(self, step: int) -> bool:
        """Return True, after noting which discriminators learn at `step`."""
        self.active = [discriminator for discriminator in self.discriminators.values() if discriminator.is_active(step)]
        return True

    def train(self, mode: bool = True) -> Autoencode:
        super().train(mode)
        if self.perceptual is not None:
            self.perceptual.eval()
        return self

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the loss of reconstructions: pixels, perceptual, adversarial, and the bottleneck's regulariser."""
        x0, _ = self.task(batch)
        reconstructed, regulariser, metrics = self.tokenizer.reconstruct(x0, rng)
        with full_precision(x0):
            reconstructed = reconstructed.float()
            errors = self.error(reconstructed, x0, reduction="none").mean((1, 2, 3))  # (B,)
        losses, terms = errors, {"pixel": sum_and_count(errors), **metrics}
        if self.perceptual is not None:
            distance = self.perceptual(reconstructed, x0)
            losses, terms = losses + self.perceptual.factor * distance, {**terms, "perceptual": sum_and_count(distance)}
        reconstruction = losses.mean()
        loss = reconstruction + regulariser.mean()
        for discriminator in self.active:
            adversarial, adversarial_terms = self._adversarial(discriminator, reconstruction, x0, reconstructed)
            loss, terms = loss + adversarial, {**terms, **adversarial_terms}
        return loss, terms

    def _adversarial(
        self, discriminator: TrainDiscriminator, reconstruction: Tensor, x0: Tensor, reconstructed: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Return lambda * mean(-D(reconstruction)) and its metrics; queue the pair for the discriminator's update."""
        discriminator.pairs.append((x0, reconstructed.detach()))
        if discriminator.alone:
            return torch.zeros((), device=x0.device), {}
        with frozen(discriminator.network):
            fooled = -discriminator.network(reconstructed).float().mean()
        weight = adaptive_weight(reconstruction, fooled, self.tokenizer.last_weight) * discriminator.factor
        one = torch.ones((), device=x0.device)
        return weight * fooled, {"fooled": (fooled.detach(), one), "adaptive_weight": (weight, one)}


class TrainDiscriminator(Objective):
    """Hinge loss of the discriminator between images and reconstructions (Eq. 5, arXiv 2012.09841, as in its code).

    Args:
        discriminator: images -> logits.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__(network=discriminator)
        self.factor, self.start, self.head_start = discriminator.factor, discriminator.start, discriminator.head_start
        self.alone = False
        self.pairs: list[
            tuple[Tensor, Tensor]
        ] = []  # (x0, reconstruction) of the tokenizer's last batch, in micro-batches

    def is_active(self, step: int) -> bool:
        """Return whether the discriminator learns at `step`."""
        self.alone = step < self.start + self.head_start
        return step >= self.start

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the discriminator's loss on real images and reconstructions."""
        x0, reconstructed = self.pairs.pop(0)
        real, fake = self.network(x0).float(), self.network(reconstructed).float()
        return hinge(real, fake), {
            "logit_real": sum_and_count(real.mean((1, 2, 3))),
            "logit_fake": sum_and_count(fake.mean((1, 2, 3))),
        }


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return (mean relu(1 - real) + mean relu(1 + fake)) / 2 of logits: 1 at 0, 0 beyond +-1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """Return ||grad reconstruction|| / (||grad adversarial|| + 1e-4) at `weight`, clamped to [0, 1e4].

    Eq. 7, arXiv 2012.09841, `weight` the decoder's last. Detached; 0 if gradients are disabled.
    """
    if not torch.is_grad_enabled():
        return torch.zeros((), device=weight.device)
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


def sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of one number per image, for metrics."""
    return values.detach().sum(), torch.full((), float(len(values)), device=values.device)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Exclude the network's parameters from the gradients while the block lasts."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)

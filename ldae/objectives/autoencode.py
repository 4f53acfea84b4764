"""Training a convolutional tokenizer: pixels, perceptual distance, bottleneck, and a discriminator against it."""

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
HIGHEST = 1e4  # of the adaptive weight


class Autoencode(Objective):
    """pixel error + perceptual distance + bottleneck's loss + lambda * adversarial loss (Eq. 4-7, arXiv 2012.09841).

    The error is a mean over the numbers of an image. Latent diffusion sums it instead (and so counts the perceptual
    distance 3 H W times); divided by 3 H W that is this loss. Without a perceptual network and a discriminator it is
    that of a plain VAE (step 3 of arXiv 2401.14404).

    Args:
        task: batch -> (x0, cond).
        tokenizer: a convolutional one.
        perceptual: frozen and trained, or None.
        discriminator: or None.
        pixel: mean absolute or mean squared error.

    Raises:
        ConfigError: the tokenizer is of another kind.
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
        # in a dict, so that another player's parameters are not registered as this one's
        self.opponents = {} if discriminator is None else {"discriminator": Discriminate(discriminator)}
        self.active: list[Discriminate] = []

    @property
    def trainable_modules(self) -> Mapping[str, TrainableModule]:
        return {"tokenizer": self, **self.opponents}

    def is_active(self, step: int) -> bool:
        self.active = [opponent for opponent in self.opponents.values() if opponent.is_active(step)]
        return True

    def train(self, mode: bool = True) -> Autoencode:
        super().train(mode)
        if self.perceptual is not None:
            self.perceptual.eval()
        return self

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        x0, _ = self.task(batch)
        answer, regulariser, metrics = self.tokenizer.reconstruct(x0, rng)
        with full_precision(x0):
            answer = answer.float()
            errors = self.error(answer, x0, reduction="none").mean((1, 2, 3))  # (B,)
        losses, found = errors, {"pixel": total(errors), **metrics}
        if self.perceptual is not None:
            distance = self.perceptual(answer, x0)
            losses, found = losses + self.perceptual.factor * distance, {**found, "perceptual": total(distance)}
        reconstruction = losses.mean()
        loss = reconstruction + regulariser.mean()
        for opponent in self.active:
            adversarial, message = self._adversarial(opponent, reconstruction, x0, answer)
            loss, found = loss + adversarial, {**found, **message}
        return loss, found

    def _adversarial(
        self, opponent: Discriminate, reconstruction: Tensor, x0: Tensor, answer: Tensor
    ) -> tuple[Tensor, Metrics]:
        """lambda * mean(-D(answer)), and what it was; leaves the pair for the discriminator's own turn."""
        opponent.pairs.append((x0, answer.detach()))
        if opponent.alone:
            return torch.zeros((), device=x0.device), {}
        with frozen(opponent.network):
            fooled = -opponent.network(answer).float().mean()
        weight = adaptive_weight(reconstruction, fooled, self.tokenizer.last_weight) * opponent.factor
        one = torch.ones((), device=x0.device)
        return weight * fooled, {"fooled": (fooled.detach(), one), "adaptive_weight": (weight, one)}


class Discriminate(Objective):
    """Tells images from reconstructions: hinge loss (Eq. 5, arXiv 2012.09841, in the form of its code).

    Args:
        discriminator: from images to logits.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__(network=discriminator)
        self.factor, self.start, self.head_start = discriminator.factor, discriminator.start, discriminator.head_start
        self.alone = False
        self.pairs: list[tuple[Tensor, Tensor]] = []  # what the tokenizer has just shown, part by part

    def is_active(self, step: int) -> bool:
        self.alone = step < self.start + self.head_start
        return step >= self.start

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        x0, answer = self.pairs.pop(0)
        real, fake = self.network(x0).float(), self.network(answer).float()
        return hinge(real, fake), {"logit_real": total(real.mean((1, 2, 3))), "logit_fake": total(fake.mean((1, 2, 3)))}


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Half of mean relu(1 - D(x)) + mean relu(1 + D(answer)): 1 where the logits are 0, 0 beyond +-1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """||grad reconstruction|| / (||grad adversarial|| + 1e-4) at the decoder's last weight, clamped to [0, 1e4]
    (Eq. 7, arXiv 2012.09841). Detached; 0 where no gradients are kept."""
    if not torch.is_grad_enabled():
        return torch.zeros((), device=weight.device)
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, HIGHEST).detach()


def total(values: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) of one number per image."""
    return values.detach().sum(), torch.full((), float(len(values)), device=values.device)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While the block lasts, the network's parameters gather no gradients; they pass through it."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)

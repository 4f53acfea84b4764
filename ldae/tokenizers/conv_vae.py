"""The convolutional VAE that latent diffusion uses (arXiv 2112.10752), without its GAN and perceptual losses:
the tokenizer of steps 3 and 4 of arXiv 2401.14404."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.errors import ConfigError
from ldae.nn.conv import Downsample, ResBlock, SpatialAttention, Upsample, group_norm
from ldae.parts import Count, NonNegative
from ldae.tokenizers.base import Tokenizer
from ldae.types import Draws, Metrics


class ConvVAE(Tokenizer):
    """||x - g(z)||^2 + kl * KL[N(m, s^2) | N(0, I)], z drawn from N(m, s^2); latents are the means m.

    Both terms are sums over an image, averaged over the batch: `kl` means nothing without that. With channels 128,
    multipliers (1, 2, 4, 4), blocks 2 and z_channels 4 it is the f8 autoencoder of 83,653,863 parameters.

    Args:
        image_shape: (3, H, W).
        z_channels: channels of the latent.
        channels: of the first level.
        multipliers: of `channels`, one for each level; f = 2^(levels - 1).
        blocks: residual blocks of a level (the decoder has one more).
        token: side of the square of latents that a transformer reads as one token; d = z_channels token^2.
        kl: weight of the KL divergence (nats).
        scaling: `one` latent scale for all channels or one for `each`.

    Raises:
        ConfigError: f or f x token does not divide the image.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        z_channels: Count,
        channels: Count,
        multipliers: list[Count],
        blocks: Count = 1,
        token: Count = 1,
        kl: NonNegative = 1e-6,
        scaling: Literal["one", "each"] = "one",
    ):
        f = 2 ** (len(multipliers) - 1)
        if image_shape[1] % (f * token):
            raise ConfigError("multipliers", multipliers, f"make f={f}; f x token={f * token} must divide data.size")
        super().__init__(image_shape, (z_channels, image_shape[1] // f, image_shape[2] // f), scaling)
        self.token, self.kl = token, kl
        self.encoder = _encoder(channels, multipliers, blocks, 2 * z_channels)
        self.moments = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.unmoments = nn.Conv2d(z_channels, z_channels, 1)
        self.decoder = _decoder(channels, multipliers, blocks, z_channels)

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[1] // self.token, self.shape[2] // self.token

    @property
    def needs_training(self) -> bool:
        return True

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (B, z_channels, h, w)."""
        mean, log_variance = self.moments(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def to_raw(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.decoder(self.unmoments(raw))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Nothing to fit before training; the latent scale comes from `calibrate` after it."""

    def loss(self, x: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error plus kl * KL, both summed over an image, mean over the batch, per pixel and channel."""
        mean, log_variance = (m.float() for m in self.posterior(x))
        raw = mean + torch.exp(log_variance / 2) * draws.normal(mean.shape)
        errors = F.mse_loss(self.from_raw(raw).float(), x, reduction="none").sum((1, 2, 3))  # (B,)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))  # (B,) nats
        count = torch.full((), float(len(x)), device=x.device)
        loss = (errors + self.kl * divergence).mean() / x[0].numel()
        return loss, {"mse": (errors.detach().sum() / x[0].numel(), count), "kl": (divergence.detach().sum(), count)}


def _encoder(channels: int, multipliers: list[int], blocks: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    width = channels
    for i, times in enumerate(multipliers):
        for _ in range(blocks):
            layers.append(ResBlock(width, channels * times))
            width = channels * times
        if i < len(multipliers) - 1:
            layers.append(Downsample(width))
    layers += [*_middle(width), group_norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)]
    return nn.Sequential(*layers)


def _decoder(channels: int, multipliers: list[int], blocks: int, z_channels: int) -> nn.Sequential:
    width = channels * multipliers[-1]
    layers: list[nn.Module] = [nn.Conv2d(z_channels, width, 3, padding=1), *_middle(width)]
    for i, times in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            layers.append(ResBlock(width, channels * times))
            width = channels * times
        if i:
            layers.append(Upsample(width))
    layers += [group_norm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
    return nn.Sequential(*layers)


def _middle(width: int) -> list[nn.Module]:
    return [ResBlock(width, width), SpatialAttention(width), ResBlock(width, width)]

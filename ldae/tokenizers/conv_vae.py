"""The convolutional tokenizer of latent diffusion with a KL bottleneck (arXiv 2112.10752): steps 0 to 4 of
arXiv 2401.14404. What it is trained with beside its KL, a perceptual loss or a GAN, is the objective's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ldae.parts import Count, NonNegative, PossiblyEmpty
from ldae.tokenizers.conv_base import ConvTokenizer
from ldae.types import Draws, Metrics


class ConvVAE(ConvTokenizer):
    """Posterior N(m, s^2); the regulariser is kl * KL[N(m, s^2) | N(0, I)].

    The KL divergence is summed over an image, as is the error that it is weighed against in latent diffusion:
    `kl` means nothing without that. Here both are then divided by the 3 H W numbers of an image. With channels 128,
    multipliers (1, 2, 4, 4), blocks 2 and z_channels 4 it is the f8 autoencoder of 83,653,863 parameters.

    Args: as ConvTokenizer, and
        kl: weight of the KL divergence (nats).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        z_channels: Count,
        channels: Count,
        multipliers: list[Count],
        blocks: Count = 1,
        token: Count = 1,
        attention: PossiblyEmpty[Count] | None = None,
        kl: NonNegative = 1e-6,
        scaling: Literal["one", "each"] = "one",
    ):
        super().__init__(
            image_shape, z_channels, 2 * z_channels, channels, multipliers, blocks, token, attention or (), scaling
        )
        self.kl = kl
        self.moments = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.unmoments = nn.Conv2d(z_channels, z_channels, 1)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latents, each (B, z_channels, h, w) float32."""
        mean, log_variance = self.moments(self.encoder(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.gaussian(x)
        return mean, torch.exp(log_variance / 2)

    def to_raw(self, x: Tensor) -> Tensor:
        return self.gaussian(x)[0]

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.decoder(self.unmoments(raw))

    def reconstruct(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Metrics]:
        mean, log_variance = self.gaussian(x)
        raw = mean + torch.exp(log_variance / 2) * draws.normal(mean.shape)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))  # (B,) nats
        count = torch.full((), float(len(x)), device=x.device)
        return self.from_raw(raw), self.kl * divergence / x[0].numel(), {"kl": (divergence.detach().sum(), count)}

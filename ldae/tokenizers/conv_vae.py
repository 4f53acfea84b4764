"""Convolutional KL tokenizer of latent diffusion (arXiv 2112.10752): steps 0 to 4 of arXiv 2401.14404.

Its perceptual and adversarial losses belong to the objective (ldae.objectives.autoencode).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, Metrics, NonNegative, PossiblyEmpty
from ldae.nn.conv import conv_decoder, conv_encoder
from ldae.tokenizers.base import Tokenizer


class ConvTokenizer(Tokenizer):
    """Convolutional encoder, bottleneck and decoder (arXiv 2012.09841, 2112.10752).

    Args:
        image_shape: (3, H, H).
        z_channels: channels of the latent.
        encoded: channels of the encoder's output.
        channels: of the first level.
        multipliers: of `channels`, one for each level; f = 2^(levels - 1).
        blocks: residual blocks of a level (the decoder has one more).
        token: side of the square of latents in one token of a transformer; d = z_channels token^2.
        attention: sides of feature maps with attention in each block; the middle always has it.
        scaling: `one` latent scale for all channels or one for `each`.

    Raises:
        ConfigError: the images have other than 3 channels, or f or f x token does not divide them.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        z_channels: int,
        encoded: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        token: int,
        attention: Sequence[int],
        scaling: Literal["one", "each"],
    ):
        if image_shape[0] != 3:
            raise ConfigError(
                "part", type(self).__name__, f"is for 3 channels, the task has {image_shape[0]}; use tokenizer=identity"
            )
        side, f = image_shape[1], 2 ** (len(multipliers) - 1)
        if side % (f * token):
            raise ConfigError("multipliers", multipliers, f"make f={f}; f x token={f * token} must divide data.size")
        super().__init__(image_shape, (z_channels, side // f, side // f), scaling)
        self.token = token
        self.encoder = conv_encoder(channels, multipliers, blocks, encoded, side, attention)
        self.decoder = conv_decoder(channels, multipliers, blocks, z_channels, side, attention)

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the tokens, each of `token` x `token` latents."""
        return self.shape[1] // self.token, self.shape[2] // self.token

    @property
    def is_costly(self) -> bool:
        """Return True: latents are worth caching."""
        return True

    @property
    def needs_training(self) -> bool:
        """Return True: the tokenizer is trained by gradient descent."""
        return True

    @property
    def last_weight(self) -> Tensor:
        """Return the weight of the decoder's last convolution, for the adaptive weight of the GAN loss."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Do nothing: the latent scale is measured by `calibrate` after training."""
        return self

    @abstractmethod
    def reconstruct(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Metrics]:
        """Reconstruct images in training.

        Args:
            x: (B, 3, H, W) in [-1, 1].
            rng: of the posterior.

        Returns:
            Reconstruction (B, 3, H, W), regulariser of the bottleneck (B,) per pixel and channel, and metrics.
        """


class ConvVAE(ConvTokenizer):
    """KL autoencoder: posterior N(m, s^2), regulariser kl * KL[N(m, s^2) | N(0, I)].

    Latent diffusion sums the KL divergence and the error over an image, and `kl` is relative to that; here both are
    then divided by the 3 H W numbers of an image. With channels 128,
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
        """Return mean and log-variance of the raw latents, each (B, z_channels, h, w) float32."""
        mean, log_variance = self.moments(self.encoder(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the raw latents, each (B, z_channels, h, w)."""
        mean, log_variance = self.gaussian(x)
        return mean, torch.exp(log_variance / 2)

    def to_raw(self, x: Tensor) -> Tensor:
        """Return the mean of the raw latents, (B, 3, H, W) -> (B, z_channels, h, w)."""
        return self.gaussian(x)[0]

    def from_raw(self, raw: Tensor) -> Tensor:
        """Decode raw latents, (B, z_channels, h, w) -> (B, 3, H, W)."""
        return self.decoder(self.unmoments(raw))

    def reconstruct(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Metrics]:
        """Decode a posterior sample of images (B, 3, H, W); return it, the weighted KL divergence (B,) and metrics."""
        mean, log_variance = self.gaussian(x)
        raw = mean + torch.exp(log_variance / 2) * rng.normal(mean.shape)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))  # (B,) nats
        count = torch.full((), float(len(x)), device=x.device)
        return self.from_raw(raw), self.kl * divergence / x[0].numel(), {"kl": (divergence.detach().sum(), count)}

"""What the convolutional tokenizers share: f = 2, 4, 8, 16 by the number of levels, and a bottleneck of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from ldae.errors import ConfigError
from ldae.nn.conv import conv_decoder, conv_encoder
from ldae.tokenizers.base import Tokenizer
from ldae.types import Draws, Metrics


class ConvTokenizer(Tokenizer):
    """Residual convolutions down to a feature map, a bottleneck, and up again (arXiv 2012.09841, 2112.10752).

    Args:
        image_shape: (3, H, H).
        z_channels: channels of the latent.
        encoded: channels that the encoder hands to the bottleneck.
        channels: of the first level.
        multipliers: of `channels`, one for each level; f = 2^(levels - 1).
        blocks: residual blocks of a level (the decoder has one more).
        token: side of the square of latents that a transformer reads as one token; d = z_channels token^2.
        attention: sides of feature maps with attention in each block, beside the one in the middle.
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
        return self.shape[1] // self.token, self.shape[2] // self.token

    @property
    def costly(self) -> bool:
        return True

    @property
    def needs_training(self) -> bool:
        return True

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last convolution; the GAN's weight is read off the gradients there."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Nothing to fit before training; the latent scale comes from `calibrate` after it."""

    @abstractmethod
    def reconstruct(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Metrics]:
        """One pass in training.

        Args:
            x: (B, 3, H, W) in [-1, 1].

        Returns:
            The reconstruction (B, 3, H, W), the bottleneck's own loss (B,) in units of an error averaged over
            the numbers of an image, and what was measured.
        """

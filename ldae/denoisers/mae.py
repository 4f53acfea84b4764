"""The masked autoencoder (arXiv 2111.06377): a ViT encoder of visible patches, and a small decoder of all patches."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Count, Positive
from ldae.denoisers.base import Network
from ldae.nn.blocks import LN_EPS, Block
from ldae.nn.embeddings import sincos_positions
from ldae.nn.masking import Masking
from ldae.nn.patchify import patchify, to_tokens


class MaskedAutoencoder(Network):
    """Encoder of visible patches and decoder of all patches (Fig. 1 and Sec. 3, arXiv 2111.06377).

    The class token passes through every block; the loss does not use it. Fixed 2-D sin-cos
    positions, zero for the class token. Linear layers start Xavier-uniform with biases 0, the class and the
    mask token normal with standard deviation 0.02 (App. A.1).

    Args:
        image_shape: (3, H, W).
        patch: p; divides H and W.
        width: D of the encoder.
        encoder_depth: blocks of the encoder.
        heads: attention heads of the encoder.
        decoder_width: D of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        mlp_ratio: hidden width of the feed-forward networks over D, in both.

    Raises:
        ConfigError: a width is not a multiple of 4 and of its heads, or the patch does not divide the image.
    """

    prefix = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch: Count,
        width: Count,
        encoder_depth: Count,
        heads: Count,
        decoder_width: Count,
        decoder_depth: Count,
        decoder_heads: Count,
        mlp_ratio: Positive = 4.0,
    ):
        super().__init__()
        _check_width("", width, heads)
        _check_width("decoder_", decoder_width, decoder_heads)
        self.patch, self.grid = patch, _grid(image_shape, patch)
        self.layers, self.encoder_layer = tuple(range(1, encoder_depth + 1)), encoder_depth
        numbers = image_shape[0] * patch**2
        self.embed = nn.Linear(numbers, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in self.layers)
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        self.to_decoder = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=LN_EPS)
        self.head = nn.Linear(decoder_width, numbers)
        self.register_buffer("positions", _positions(width, self.grid), persistent=False)
        self.register_buffer("decoder_positions", _positions(decoder_width, self.grid), persistent=False)
        self.positions: Tensor
        self.decoder_positions: Tensor
        self.apply(_initialise)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=0.02)

    def forward(self, patches: Tensor, masking: Masking) -> Tensor:
        """Predict every patch, visible or masked.

        Args:
            patches: (B, N, 3 p^2) in [-1, 1], of `patches`.
            masking: of (B, N) patches.

        Returns:
            (B, N, 3 p^2), a patch flattened as (row, column, channel).
        """
        tokens = masking.gather_visible(self.embed_patches(patches))
        latent = self._encode(tokens, self.layers[-1:])[self.encoder_layer]
        return self.decode(latent, masking)

    def decode(self, latent: Tensor, masking: Masking) -> Tensor:
        """Decode class token and visible patches: (B, 1 + kept, D) -> (B, N, 3 p^2)."""
        x = self.to_decoder(latent)  # (B, 1 + kept, D')
        B, N = masking.order.shape
        missing = self.mask_token.to(x.dtype).expand(B, N - masking.num_visible, -1)
        patches = masking.restore_order(torch.cat([x[:, 1:], missing], dim=1))  # (B, N, D')
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_positions  # (B, 1 + N, D')
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.decoder_norm(x))[:, 1:]  # (B, N, 3 p^2)

    def encode(self, x: Tensor, layers: Collection[int] | None = None, class_token: bool = False) -> dict[int, Tensor]:
        """Return the tokens of the patches of whole images after each of `layers` (all by default).

        Nothing is masked. The last layer is the encoder's output, its final LayerNorm included, as in MAE's linear
        probing; earlier layers are the outputs of the blocks. No block after the last of `layers` is computed.

        Args:
            x: (B, 3, H, W) in [-1, 1].
            layers: of 1..encoder_depth.
            class_token: put the class token before the patch tokens.

        Returns:
            {layer: (B, N, D)}, or (B, 1 + N, D) with the class token.
        """
        outputs = self._encode(self.embed_patches(self.patches(x)), self.layers if layers is None else layers)
        return {layer: tokens if class_token else tokens[:, 1:] for layer, tokens in outputs.items()}

    def undo_zero_init(self) -> None:
        """Do nothing: no block starts as the identity."""

    def patches(self, x: Tensor) -> Tensor:
        """Return patches flattened as (row, column, channel): (B, 3, H, W) -> (B, N, 3 p^2)."""
        return to_tokens(patchify(x, self.patch))

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Embed patches and add their positions: (B, N, 3 p^2) -> (B, N, D)."""
        return self.embed(patches) + self.positions[1:]

    def _encode(self, tokens: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Run the encoder on tokens (B, M, D) behind a class token: {layer: (B, 1 + M, D)}."""
        first = (self.class_token + self.positions[:1]).expand(tokens.shape[0], -1, -1)
        x, outputs = torch.cat([first, tokens], dim=1), {}
        for layer, block in zip(self.layers[: max(layers)], self.blocks, strict=False):
            x = block(x)
            if layer in layers:
                outputs[layer] = self.norm(x) if layer == self.encoder_layer else x
        return outputs


def _check_width(prefix: str, width: int, heads: int) -> None:
    if width % heads or width % 4:
        raise ConfigError(f"{prefix}width", width, f"must be a multiple of 4 and of denoiser.{prefix}heads={heads}")


def _grid(image_shape: tuple[int, int, int], p: int) -> tuple[int, int]:
    _, H, W = image_shape
    if H % p or W % p:
        raise ConfigError("patch", p, f"does not divide the image, {H} x {W}")
    return H // p, W // p


def _positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Return positions (1 + N, D): zeros for the class token, then those of the patches row by row."""
    return F.pad(sincos_positions(width, *grid), (0, 0, 1, 0))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)

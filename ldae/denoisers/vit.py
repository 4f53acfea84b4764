"""The Vision Transformer of l-DAE and of DiT: blocks conditioned on the noise level and, optionally, the class."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Cond, Count, Fraction, NoiseLevel, Positive
from ldae.denoisers.base import Denoiser
from ldae.denoisers.conditioning import LabelEmbedding, LevelEmbedding
from ldae.nn.blocks import AdaLN, ConditionedBlock, ConditionedHead, Gelu
from ldae.nn.embeddings import sincos_positions
from ldae.nn.masking import Masking, count_visible
from ldae.nn.patchify import patchify, to_grid, to_tokens, unpatchify


class ViTDenoiser(Denoiser):
    """ViT on a grid of tokens, from a latent or an image to a latent or an image.

    Encoder blocks, then decoder blocks, without skips between them. Fixed 2-D sin-cos positions. adaLN-Zero: at
    initialisation the output is 0 and every block the identity. Sizes: Sec. 4, arXiv 2401.14404. DiT
    (arXiv 2212.09748) is the same with cond_ratio 1, cond_layers 2, gelu tanh and classes.

    Args:
        in_shape: (C, H, W) of x_t.
        out_shape: (C', H', W') of the output.
        grid: (h, w) tokens, as the tokenizer has them; divides both shapes.
        width: D.
        encoder_depth: blocks up to the representation.
        decoder_depth: blocks after it.
        heads: attention heads; divides `width`.
        mlp_ratio: hidden width of the feed-forward networks over D.
        cond_ratio: hidden width of the conditioning network over D; l-DAE's is a quarter.
        cond_layers: Linears between the sinusoid of t and the blocks.
        gelu: exact, or its tanh approximation.
        patch: p of x_t; overrides `grid`.
        classes: K; 0 for an unconditional network.
        keep: fraction of the tokens that the encoder blocks see in training, as in MaskDiT (arXiv 2306.09305); a
            learned token stands for each other one in the decoder blocks. Samplers and probes use all tokens.
        noise_conditioning: tell the blocks the noise level; without it they estimate it (arXiv 2502.13129).

    Raises:
        ConfigError: `keep` leaves no token, heads does not divide width, width is not a multiple of 4, or grid or patch
            do not fit.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        grid: tuple[int, int],
        width: Count,
        encoder_depth: Count,
        decoder_depth: Count,
        heads: Count,
        mlp_ratio: Positive = 4.0,
        cond_ratio: Positive = 0.25,
        cond_layers: Literal[1, 2] = 1,
        gelu: Gelu = "exact",
        patch: Count | None = None,
        classes: int = 0,
        keep: Fraction = 1.0,
        noise_conditioning: bool = True,
    ):
        super().__init__()
        if width % heads or width % 4:
            raise ConfigError("width", width, f"must be a multiple of 4 and of denoiser.heads={heads}")
        self.grid = grid if patch is None else _grid_of(in_shape, patch)
        self.width, self.encoder_layer = width, encoder_depth
        self.layers = tuple(range(1, encoder_depth + decoder_depth + 1))
        self.in_patch, self.out_patch = (_patch(shape, self.grid) for shape in (in_shape, out_shape))
        cond_width = max(1, int(cond_ratio * width))
        self.embed = nn.Linear(in_shape[0] * self.in_patch**2, width)
        self.register_buffer("positions", sincos_positions(width, *self.grid), persistent=False)
        self.positions: Tensor
        self.cond_width = cond_width
        self.level = LevelEmbedding(cond_width, layers=cond_layers) if noise_conditioning else None
        self.labels = LabelEmbedding(classes, cond_width) if classes else None
        self.blocks = nn.ModuleList(ConditionedBlock(width, heads, cond_width, mlp_ratio, gelu) for _ in self.layers)
        self.head = ConditionedHead(width, cond_width, out_shape[0] * self.out_patch**2)
        self.keep, self.mask_token = keep, None
        if keep < 1:
            if not count_visible(self.grid[0] * self.grid[1], 1 - keep):
                raise ConfigError("keep", keep, f"leaves none of {self.grid[0] * self.grid[1]} tokens")
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.apply(_initialise)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)  # after the other weights, which `keep` does not change
        for layer in [self.head.linear, *(m.linear for m in self.modules() if isinstance(m, AdaLN))]:
            nn.init.zeros_(layer.weight)

    def forward(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, masking: Masking | None = None
    ) -> Tensor:
        """Predict the target, (B, C, H, W) -> (B, C', H', W'), from the tokens that `masking` leaves visible."""
        x, c = self.embed_patches(x_t) + self.positions, self.embed_condition(level, cond)
        if masking is not None:
            x = masking.gather_visible(x)  # (B, kept, D)
        for layer, block in zip(self.layers, self.blocks, strict=True):
            x = block(x, c)  # (B, N, D)
            if masking is not None and layer == self.encoder_layer:
                x = self.insert_mask_tokens(x, masking)
        return unpatchify(to_grid(self.head(x, c), self.grid[0]), self.out_patch)  # (B, C', H', W')

    def draw_masking(self, count: int, rng: BatchGenerator) -> Masking | None:
        """Draw the tokens that the encoder blocks see; None with keep = 1 or in eval mode."""
        if self.mask_token is None or not self.training:
            return None
        return Masking.from_noise(rng.uniform((count, self.grid[0] * self.grid[1])), 1 - self.keep)

    def insert_mask_tokens(self, x: Tensor, masking: Masking) -> Tensor:
        """Return visible tokens (B, kept, D) and mask tokens with their positions, in order: (B, N, D)."""
        assert self.mask_token is not None
        B, N = masking.order.shape
        missing = self.mask_token.to(x.dtype).expand(B, N - masking.num_visible, -1)
        positions = (self.positions * masking.mask[..., None]).to(x.dtype)  # visible tokens have theirs
        return masking.restore_order(torch.cat([x, missing], dim=1)) + positions

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the tokens after each of `layers` (default: all), {layer: (B, N, D)}; all tokens are visible."""
        requested = self.layers if layers is None else layers
        x, c, outputs = self.embed_patches(x_t) + self.positions, self.embed_condition(level, cond), {}
        for layer, block in zip(self.layers[: max(requested)], self.blocks, strict=False):
            x = block(x, c)  # (B, N, D)
            if layer in requested:
                outputs[layer] = x
        return outputs

    @torch.no_grad()
    def undo_zero_init(self) -> None:
        """Make every block a plain ViT block with random weights (gates 1, shifts and scales 0)."""
        for block in self.blocks:
            assert isinstance(block, ConditionedBlock)
            block.ada.linear.weight.zero_()
            gates = block.ada.linear.bias.zero_().view(6, -1)  # shift, scale, gate; twice
            gates[2].fill_(1)
            gates[5].fill_(1)

    def embed_condition(self, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """Return the condition of the blocks, (B, cond_width); without a label it has the null class."""
        c = self.level(level) if self.level else self.positions.new_zeros(len(level.t), self.cond_width)
        return c if self.labels is None else c + self.labels(cond.label if cond else None, like=c)

    def embed_patches(self, x_t: Tensor) -> Tensor:
        """Embed patches, without positions: (B, C, H, W) -> (B, N, D)."""
        return self.embed(to_tokens(patchify(x_t, self.in_patch)))


def _grid_of(shape: tuple[int, int, int], patch: int) -> tuple[int, int]:
    if shape[1] % patch or shape[2] % patch:
        raise ConfigError("patch", patch, f"must divide the network's input, {shape[1]} x {shape[2]}")
    return shape[1] // patch, shape[2] // patch


def _patch(shape: tuple[int, int, int], grid: tuple[int, int]) -> int:
    p = shape[1] // grid[0]
    if p < 1 or (grid[0] * p, grid[1] * p) != tuple(shape[1:]):
        raise ConfigError("grid", grid, f"of tokens does not tile an input of {shape[1]} x {shape[2]}")
    return p


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, LevelEmbedding):  # after its Linears: children come first
        module.initialise()

"""Convolutional VQ tokenizer of VQGAN (arXiv 2012.09841)."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ldae.core.types import BatchGenerator, Count, Metrics, NonNegative, Positive, PossiblyEmpty
from ldae.tokenizers.conv_vae import ConvTokenizer


class VQ(ConvTokenizer):
    """VQ autoencoder: latents are replaced by the nearest of K codes before decoding (Sec. 3.1, arXiv 2012.09841).

    `encode` returns latents before quantisation and `decode` quantises them, as latent diffusion does (App. D,
    arXiv 2112.10752).

    Args: as ConvTokenizer, and
        codes: K, the size of the codebook.
        commitment: beta, weight of the commitment loss of the encoder, as in the paper. (The code of VQGAN applies it
            to the other term, as its comment says.)
        regulariser: weight of the whole codebook loss.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        z_channels: Count,
        channels: Count,
        multipliers: list[Count],
        codes: Count,
        blocks: Count = 1,
        token: Count = 1,
        attention: PossiblyEmpty[Count] | None = None,
        commitment: NonNegative = 0.25,
        regulariser: Positive = 1.0,
        scaling: Literal["one", "each"] = "one",
    ):
        super().__init__(
            image_shape, z_channels, z_channels, channels, multipliers, blocks, token, attention or (), scaling
        )
        self.commitment, self.regulariser = commitment, regulariser
        self.before, self.after = nn.Conv2d(z_channels, z_channels, 1), nn.Conv2d(z_channels, z_channels, 1)
        self.codebook = nn.Parameter(torch.empty(codes, z_channels).uniform_(-1 / codes, 1 / codes))

    def to_raw(self, x: Tensor) -> Tensor:
        """Return the latents before quantisation, (B, 3, H, W) -> (B, z_channels, h, w) float32."""
        return self.before(self.encoder(x)).float()

    def from_raw(self, raw: Tensor) -> Tensor:
        """Quantise raw latents and decode them, (B, z_channels, h, w) -> (B, 3, H, W)."""
        return self.decoder(self.after(self.quantise(raw)[0]))

    def quantise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of latents (B, z_channels, h, w), of the same shape, and their indices (B, h, w)."""
        flat = rearrange(raw, "b c h w -> (b h w) c")
        distance = (self.codebook**2).sum(1) - 2 * flat @ self.codebook.T  # ||z||^2 is the same for all codes
        index = rearrange(distance.argmin(1), "(b h w) -> b h w", b=raw.shape[0], h=raw.shape[2])
        return rearrange(self.codebook[index], "b h w c -> b c h w"), index

    def reconstruct(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Metrics]:
        """Decode quantised images (B, 3, H, W); return them with the losses of the codebook (B,) and metrics."""
        raw = self.to_raw(x)
        with torch.autocast(x.device.type, enabled=False):
            codes, index = self.quantise(raw)
            codebook = ((raw.detach() - codes) ** 2).mean((1, 2, 3))  # (B,) gradient for the codes
            commitment = ((raw - codes.detach()) ** 2).mean((1, 2, 3))  # (B,) gradient for the encoder
        straight_through = raw + (codes - raw).detach()  # straight-through gradient
        one = torch.ones((), device=x.device)
        is_used = torch.zeros(len(self.codebook), device=x.device).index_fill_(0, index.flatten(), 1)
        used = is_used.sum()
        metrics = {"codebook": (codebook.detach().sum(), one * len(x)), "codes_in_batch": (used, one)}
        losses = self.regulariser * (codebook + self.commitment * commitment)  # (B,)
        return self.decoder(self.after(straight_through)), losses, metrics

    @torch.no_grad()
    def statistics(self, x: Tensor) -> dict[str, float]:
        """Return moments of the latents, the fraction of codes in use and their perplexity, exp of the entropy."""
        index = self.quantise(self.to_raw(x))[1]
        frequency = torch.bincount(index.flatten(), minlength=len(self.codebook)).double() / index.numel()
        entropy = -torch.xlogy(frequency, frequency).sum()
        usage = {"codes_used": float((frequency > 0).double().mean()), "code_perplexity": float(entropy.exp())}
        return {**super().statistics(x), **usage}

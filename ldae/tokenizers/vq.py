"""The convolutional tokenizer with a codebook: VQGAN (arXiv 2012.09841)."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ldae.core.types import BatchGenerator, Count, Metrics, NonNegative, Positive, PossiblyEmpty
from ldae.tokenizers.conv_vae import ConvTokenizer


class VQ(ConvTokenizer):
    """Latents are replaced by the nearest of K codes before they are decoded (Sec. 3.1, arXiv 2012.09841).

    A latent for diffusion is taken before that, and decoding quantises it, as latent diffusion does with its
    VQ tokenizers (App. D, arXiv 2112.10752).

    Args: as ConvTokenizer, and
        codes: K, the size of the codebook.
        commitment: beta, the weight of the pull on the encoder. (The published code of VQGAN puts it on the
            other term, as its comment admits; here it is where the paper has it.)
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
        return self.before(self.encoder(x)).float()

    def from_raw(self, raw: Tensor) -> Tensor:
        return self.decoder(self.after(self.quantise(raw)[0]))

    def quantise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes: (B, z_channels, h, w) -> the codes, of the same shape, and their indices (B, h, w)."""
        flat = rearrange(raw, "b c h w -> (b h w) c")
        distance = (self.codebook**2).sum(1) - 2 * flat @ self.codebook.T  # ||z||^2 is the same for all codes
        index = rearrange(distance.argmin(1), "(b h w) -> b h w", b=raw.shape[0], h=raw.shape[2])
        return rearrange(self.codebook[index], "b h w c -> b c h w"), index

    def reconstruct(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Metrics]:
        raw = self.to_raw(x)
        with torch.autocast(x.device.type, enabled=False):
            codes, index = self.quantise(raw)
            pull = ((raw.detach() - codes) ** 2).mean((1, 2, 3))  # (B,) moves the codes
            commit = ((raw - codes.detach()) ** 2).mean((1, 2, 3))  # (B,) moves the encoder
        through = raw + (codes - raw).detach()  # the gradient passes as if nothing had been replaced
        one = torch.ones((), device=x.device)
        measured = {"codebook": (pull.detach().sum(), one * len(x)), "codes_in_batch": (one * len(index.unique()), one)}
        return self.decoder(self.after(through)), self.regulariser * (pull + self.commitment * commit), measured

    @torch.no_grad()
    def statistics(self, x: Tensor) -> dict[str, float]:
        """Beside the latents' moments, the share of codes in use and their perplexity, exp of the entropy."""
        index = self.quantise(self.to_raw(x))[1]
        share = torch.bincount(index.flatten(), minlength=len(self.codebook)).double() / index.numel()
        entropy = -torch.xlogy(share, share).sum()
        used = {"codes_used": float((share > 0).double().mean()), "code_perplexity": float(entropy.exp())}
        return {**super().statistics(x), **used}

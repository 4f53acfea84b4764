"""Masked autoencoding: the pixels of hidden patches from those that are seen (arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Fraction, Metrics
from ldae.denoisers.base import Network
from ldae.denoisers.mae import MaskedAutoencoder
from ldae.nn.masking import Masking, count_visible
from ldae.nn.patchify import patchify, to_grid, to_tokens, unpatchify
from ldae.objectives.base import PretrainingObjective, full_precision
from ldae.tasks.base import Task

EPS = 1e-6  # added to a patch's variance, so that a flat patch becomes 0


class Masked(PretrainingObjective):
    """Hides patches and asks for their pixels.

    Pixels are in [-1, 1], where MAE standardises with the mean and deviation of each of ImageNet's channels.
    With `norm_pix` a patch's own mean and deviation replace any scale that the channels share; what is left of
    the difference is that MAE's three scales differ by 2 % and its three means by 0.08 of the range.

    Args:
        task: batch -> (x0, cond).
        denoiser: a masked autoencoder.
        ratio: share of the patches that are hidden.
        norm_pix: whether each patch's pixels are standardised by their own mean and deviation before they are
            asked for (Sec. 3, "Reconstruction target").

    Raises:
        ConfigError: the network is no masked autoencoder, or the ratio leaves nothing to see or nothing to fill in.
    """

    noisy = False
    network: MaskedAutoencoder

    def __init__(self, task: Task, denoiser: Network, ratio: Fraction = 0.75, norm_pix: bool = True):
        super().__init__(network=denoiser)
        self.check_network(type(denoiser))
        assert isinstance(denoiser, MaskedAutoencoder)
        self.task, self.tokenizer, self.T = task, None, 1
        self.ratio, self.norm_pix = ratio, norm_pix
        h, w = denoiser.grid
        self.image_shape = (3, h * denoiser.patch, w * denoiser.patch)
        if not 0 < count_visible(h * w, ratio) < h * w:
            raise ConfigError("ratio", ratio, f"must leave some of {h * w} patches to see and some to fill in")

    @classmethod
    def check_network(cls, network: type[Network]) -> None:
        if not issubclass(network, MaskedAutoencoder):
            message = "cannot leave patches out; use a masked autoencoder such as mae_128x4"
            raise ConfigError("denoiser", network.__name__, message)

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Squared error, mean over the numbers of a patch, then over hidden patches alone (Sec. 3)."""
        with full_precision(batch.images):
            x0, _ = self.task(batch)
            masking = self.masking(len(x0), rng)
            y = self.standardised(self.patches(x0))  # (B, N, 3 p^2)
        out = self.network(x0, masking)
        with full_precision(batch.images):
            errors = ((out.float() - y) ** 2).mean(-1)  # (B, N)
            hidden = masking.mask.float()
            loss = (errors * hidden).sum() / hidden.sum()
            visible = (errors.detach() * (1 - hidden)).sum()
        return loss, {"error_visible": (visible, (1 - hidden).sum())}

    def masking(self, count: int, rng: BatchGenerator) -> Masking:
        """Which patches are hidden of `count` images."""
        h, w = self.network.grid
        return Masking.from_noise(rng.uniform((count, h * w)), self.ratio)

    def patches(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, 3 p^2), a patch flattened as (row, column, channel)."""
        return to_tokens(patchify(x, self.network.patch))

    def standardised(self, patches: Tensor) -> Tensor:
        """What is asked for of patches (B, N, 3 p^2)."""
        mean, deviation = self._moments(patches)
        return (patches - mean) / deviation

    def to_pixels(self, out: Tensor, patches: Tensor) -> Tensor:
        """Answers as pixels, with the mean and deviation of the true patches if answers have neither."""
        mean, deviation = self._moments(patches)
        return out * deviation + mean

    def _moments(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each patch, (B, N, 1); 0 and 1 without norm_pix."""
        if not self.norm_pix:
            return patches.new_zeros(1), patches.new_ones(1)
        variance, mean = torch.var_mean(patches, dim=-1, correction=1, keepdim=True)
        return mean, (variance + EPS).sqrt()

    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        rng: BatchGenerator | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        """As promised; nothing is masked, and there is one level, 0."""
        self.check_readable(t, noised=rng is not None)
        return self.network.encode(2 * images - 1, layers, class_token)

    @torch.no_grad()
    def filled(self, images: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees, hidden patches grey, and the same with its answers in their place.

        With norm_pix an answer has neither brightness nor contrast: it gets those of the true patch.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            Both (B, 3, H, W) in [-1, 1] and beyond, unclipped; and which of their numbers are hidden, bool.
        """
        x0 = 2 * images - 1
        masking, true = self.masking(len(x0), rng), self.patches(x0)
        hidden = masking.mask[..., None].expand_as(true)  # (B, N, 3 p^2)
        answer = self.to_pixels(self.network(x0, masking).float(), true)
        shown, filled = true.masked_fill(hidden, 0), torch.where(hidden, answer, true)
        return self._image(shown), self._image(filled), self._image(hidden)

    def _image(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        return unpatchify(to_grid(patches, self.network.grid[0]), self.network.patch)

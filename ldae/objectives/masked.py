"""Masked autoencoding: predict the pixels of masked patches from visible ones (arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Fraction, Metrics
from ldae.denoisers.base import Network
from ldae.denoisers.mae import MaskedAutoencoder
from ldae.nn.masking import Masking, count_visible
from ldae.nn.patchify import moments, to_grid, unpatchify
from ldae.objectives.base import PretrainingObjective, full_precision
from ldae.tasks.base import Task


class Masked(PretrainingObjective):
    """Predict the pixels of masked patches (arXiv 2111.06377).

    Pixels are in [-1, 1], where MAE standardises with ImageNet's mean and deviation per channel. With `norm_pix` every
    patch is standardised by its mean and deviation, which removes a common scale; MAE's scales differ by 2 % between
    channels and its means by 0.08 of the range.

    Args:
        task: batch -> (x0, cond).
        denoiser: a masked autoencoder.
        ratio: fraction of masked patches.
        norm_pix: standardise the target of each patch by its mean and deviation (Sec. 3, "Reconstruction target").

    Raises:
        ConfigError: the network is no masked autoencoder, or the ratio leaves no visible or no masked patch.
    """

    has_noise = False
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
        """Raise ConfigError unless the network is a masked autoencoder."""
        if not issubclass(network, MaskedAutoencoder):
            message = "cannot leave patches out; use a masked autoencoder such as mae_128x4"
            raise ConfigError("denoiser", network.__name__, message)

    def forward(self, batch: Batch, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the squared error, mean over the pixels of a patch, then over masked patches (Sec. 3)."""
        with full_precision(batch.images):
            x0, _ = self.task(batch)
            masking = self.masking(len(x0), rng)
            patches = self.network.patches(x0)  # (B, N, 3 p^2)
            y = self.standardise(patches)
        out = self.network(patches, masking)
        with full_precision(batch.images):
            errors = ((out.float() - y) ** 2).mean(-1)  # (B, N)
            hidden = masking.mask.float()
            loss = (errors * hidden).sum() / hidden.sum()
            visible = (errors.detach() * (1 - hidden)).sum()
        return loss, {"error_visible": (visible, (1 - hidden).sum())}

    def masking(self, count: int, rng: BatchGenerator) -> Masking:
        """Draw the masks of `count` images."""
        h, w = self.network.grid
        return Masking.from_noise(rng.uniform((count, h * w)), self.ratio)

    def standardise(self, patches: Tensor) -> Tensor:
        """Return the target of patches (B, N, 3 p^2): standardised with norm_pix, else unchanged."""
        mean, deviation = self._moments(patches)
        return (patches - mean) / deviation

    def to_pixels(self, out: Tensor, patches: Tensor) -> Tensor:
        """Convert predictions to pixels, with the mean and deviation of the true patches if norm_pix removed them."""
        mean, deviation = self._moments(patches)
        return out * deviation + mean

    def _moments(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each patch, (B, N, 1); 0 and 1 without norm_pix."""
        if not self.norm_pix:
            return patches.new_zeros(1), patches.new_ones(1)
        return moments(patches, dim=-1)

    def tokens(
        self,
        images: Tensor,
        layers: Collection[int],
        t: int,
        rng: BatchGenerator | None,
        class_token: bool = False,
    ) -> dict[int, Tensor]:
        """Return the tokens of unmasked images; the only level is t = 0."""
        self.check_readable(t, noised=rng is not None)
        return self.network.encode(2 * images - 1, layers, class_token)

    @torch.no_grad()
    def fill_masked(self, images: Tensor, rng: BatchGenerator) -> tuple[Tensor, Tensor, Tensor]:
        """Mask images and fill in the masked patches.

        With norm_pix predictions get the mean and deviation of the true patch.

        Args:
            images: (B, 3, H, W) in [0, 1].
            rng: of the masks.

        Returns:
            Masked images (masked patches 0) and filled images, (B, 3, H, W) in [-1, 1] but unclipped; the mask, bool.
        """
        x0 = 2 * images - 1
        masking, true = self.masking(len(x0), rng), self.network.patches(x0)
        hidden = masking.mask[..., None].expand_as(true)  # (B, N, 3 p^2)
        predicted = self.to_pixels(self.network(true, masking).float(), true)
        masked, filled = true.masked_fill(hidden, 0), torch.where(hidden, predicted, true)
        return self._image(masked), self._image(filled), self._image(hidden)

    def _image(self, patches: Tensor) -> Tensor:
        """Return the images of patches, the inverse of the network's `patches`."""
        return unpatchify(to_grid(patches, self.network.grid[0]), self.network.patch)

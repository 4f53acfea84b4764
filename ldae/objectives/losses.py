"""Losses between a prediction and its target."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Fraction, NonNegative
from ldae.nn.patchify import patchify, to_tokens
from ldae.objectives.spaces import OutputSpace
from ldae.tokenizers.base import HasBasis, Tokenizer, varies


class Loss(ABC):
    """Loss of each image, the mean of its errors."""

    @abstractmethod
    def errors(self, out: Tensor, y: Tensor) -> Tensor:
        """Return the error of each number, (B, ...), of out and y, (B, C, H, W) float32."""

    def __call__(self, out: Tensor, y: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the loss of each image, (B,), of out and y, (B, C, H, W) float32.

        Args:
            where: bool and broadcastable to `errors`, the numbers that count; None for all.
        """
        errors = self.errors(out, y)
        if where is None:
            return errors.flatten(1).mean(1)
        where = where.expand_as(errors)
        return (errors * where).flatten(1).sum(1) / where.flatten(1).sum(1)

    def hidden(self, mask: Tensor) -> Tensor:
        """Return where `errors` belong to the latent numbers that a mask (B, d, h, w) has, the residual included."""
        return mask


class L2(Loss):
    """Mean squared error of an image or latent."""

    def errors(self, out: Tensor, y: Tensor) -> Tensor:
        """Return squared errors, (B, C, H, W)."""
        return (out - y) ** 2


class L1(Loss):
    """Mean absolute error of an image or latent (the loss of arXiv 2208.09392)."""

    def errors(self, out: Tensor, y: Tensor) -> Tensor:
        """Return absolute errors, (B, C, H, W)."""
        return (out - y).abs()


class PCAWeighted(Loss):
    """Squared error on the tokenizer's full basis, V_D (y - out), weighted by 1 up to dimension d, then by `tail`.

    Step 12 of arXiv 2401.14404 (tail = 0.1): the noise lies in the first d dimensions, the PCA's residual in the rest.
    Mean over the D numbers of a patch, where the paper sums. With `whiten` = 1 every residual is divided by the
    standard deviation of its dimension (beyond d by that of dimension d), with 0.5 by its root; the weights are then
    rescaled to mean 1 over the first d. A dimension that is constant over the training images gets the smallest other
    variance.

    Args:
        tokenizer: one with an orthonormal basis (patch_pca, pixel).
        output: output space; an image.
        tail: weight beyond d.
        whiten: power of the standard deviation that divides a residual.

    Raises:
        ConfigError: the tokenizer has no such basis, or the output is a latent.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        output: OutputSpace,
        tail: NonNegative = 0.1,
        whiten: Fraction = 0.0,
    ):
        if not isinstance(tokenizer, HasBasis):
            raise ConfigError("part", "PCAWeighted", "needs a tokenizer with an orthonormal basis: patch_pca or pixel")
        if output.latent:
            raise ConfigError("part", "PCAWeighted", "needs an image as output; use output=image or loss=l2")
        self.basis, self.d, self.tail, self.whiten = tokenizer, tokenizer.shape[0], tail, whiten

    def weights(self) -> Tensor:
        """Return w_i for i = 1..D, (D, 1, 1) float32; 1 for i <= d if `whiten` is 0."""
        variance = self.basis.basis_variances().float()  # (D,)
        w = variance.clamp(min=_smallest(variance[: self.d])) ** -self.whiten
        w = w / w[: self.d].mean()
        w[self.d :] *= self.tail
        return w.reshape(-1, 1, 1)

    def errors(self, out: Tensor, y: Tensor) -> Tensor:
        """Return weighted squared errors on the basis, (B, D, h, w)."""
        return self.weights().to(out.device) * self.basis.rotate(y - out) ** 2  # (B, D, h, w)

    def hidden(self, mask: Tensor) -> Tensor:
        """Return the mask with all dimensions beyond d added, (B, D, h, w) or (B, D, 1, 1)."""
        beyond = mask.new_ones(len(mask), len(self.basis.basis_variances()) - self.d, *mask.shape[2:])
        return torch.cat([mask, beyond], dim=1)  # (B, D, h, w) or (B, D, 1, 1)


class SpanWeighted(Loss):
    """Squared error of an image, |P (y - out)|^2 + tail |(1 - P)(y - out)|^2, for every tokenizer of patches.

    P projects the patch of a token on the span of the decoder: on the image patches of unit latents. With a patch-wise
    PCA it is step 12 of arXiv 2401.14404, PCAWeighted without whitening, whose basis spans the same space; with a
    patch-wise AE or VAE the basis is that of its decoder's rows. Of a convolutional decoder the response at the zero
    latent is taken, cut to the token's own patch. Mean over the D numbers of a patch.

    Args:
        tokenizer: any but `identity`; its span is measured at the first call.
        output: output space; an image.
        tail: weight outside of the span.

    Raises:
        ConfigError: the output is a latent, or one latent is one pixel.
    """

    def __init__(self, tokenizer: Tokenizer, output: OutputSpace, tail: NonNegative = 0.1):
        if output.latent:
            raise ConfigError("part", "SpanWeighted", "needs an image as output; use output=image or loss=l2")
        self.tokenizer, self.tail = tokenizer, tail
        self.patch = tokenizer.image_shape[1] // tokenizer.grid[0]
        if self.patch < 2:
            raise ConfigError("part", "SpanWeighted", "needs a tokenizer of patches; with pixels use loss=l2")
        self._projector: Tensor | None = None

    @torch.no_grad()
    def projector(self) -> Tensor:
        """Return P, (D, D) float32 with D = 3 p^2, of patches flattened as (row, column, channel)."""
        if self._projector is None:
            images = self.tokenizer.token_filters()  # (d, 3, p, p)
            rows = to_tokens(patchify(images.float(), self.patch))[:, 0].double()  # (d, D)
            _, strength, basis = torch.linalg.svd(rows.cpu(), full_matrices=False)
            basis = basis[strength > 1e-6 * strength[0]]
            self._projector = (basis.T @ basis).float()
        return self._projector

    def errors(self, out: Tensor, y: Tensor) -> Tensor:
        """Return weighted squared errors of patches, (B, N, D)."""
        residue = to_tokens(patchify(y - out, self.patch))  # (B, N, D)
        self._projector = self.projector().to(residue.device)
        inside = residue @ self._projector
        return inside**2 + self.tail * (residue - inside) ** 2


def _smallest(variance: Tensor) -> Tensor:
    """Return the last variance of (d,), or the smallest positive one if it is 0; 1 if all are 0."""
    varying = varies(variance)
    least = torch.where(varying, variance, torch.inf).min()
    return torch.where(varying[-1], variance[-1], torch.where(varying.any(), least, 1.0))

"""How the difference between an answer and its target is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Fraction, NonNegative
from ldae.objectives.spaces import OutputSpace
from ldae.tokenizers.base import HasBasis, Tokenizer, varies


class Loss(ABC):
    """(out, y) -> one number per image."""

    @abstractmethod
    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        """out and y (B, C, H, W) float32 -> (B,)."""


class L2(Loss):
    """Mean squared error over all numbers of an image or latent."""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return ((out - y) ** 2).flatten(1).mean(1)


class L1(Loss):
    """Mean absolute error over all numbers of an image or latent (what arXiv 2208.09392 trains with)."""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return (out - y).abs().flatten(1).mean(1)


class PCAWeighted(Loss):
    """Squared error on the tokenizer's full basis: r = V_D (y - out), weight 1 for the first d, `tail` beyond.

    Step 12 of arXiv 2401.14404 (tail = 0.1): the noise lives in the first d dimensions, what the PCA lost in
    the rest. Mean over the D numbers of a patch, where the paper sums. With `whiten` 1 every residue is first
    divided by its dimension's standard deviation (that of the d-th for those beyond d), with 0.5 by its root;
    both rescaled to leave the mean weight of the first d as it was. Dimensions that are constant over the training
    images count as the one with the smallest variance does.

    Args:
        tokenizer: one with an orthonormal basis (patch_pca, pixel).
        output: the space of the answer; an image.
        tail: weight beyond d.
        whiten: power of the standard deviation that a residue is divided by.

    Raises:
        ConfigError: the tokenizer has no such basis, or the answer is a latent.
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
        """w_i for i = 1..D, (D, 1, 1) float32; 1 for i <= d unless `whiten` is on."""
        variance = self.basis.eigenvalues.float()  # (D,)
        w = variance.clamp(min=_smallest(variance[: self.d])) ** -self.whiten
        w = w / w[: self.d].mean()
        w[self.d :] *= self.tail
        return w.reshape(-1, 1, 1)

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return (self.weights().to(out.device) * self.basis.rotate(y - out) ** 2).flatten(1).mean(1)


def _smallest(variance: Tensor) -> Tensor:
    """Return the last of some variances (d,), or where it is 0 the smallest that is not; 1 where all are 0."""
    varying = varies(variance)
    least = torch.where(varying, variance, torch.inf).min()
    return torch.where(varying[-1], variance[-1], torch.where(varying.any(), least, 1.0))

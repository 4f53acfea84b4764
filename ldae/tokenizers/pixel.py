"""Pixels as latents: the image itself, or patches (Fig. 5, arXiv 2401.14404)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from ldae.core.types import Count
from ldae.nn.patchify import patchify, unpatchify
from ldae.tokenizers.base import Tokenizer
from ldae.tokenizers.patch_linear import check_patch


class Pixel(Tokenizer):
    """Identity on patches: d = 3 p^2 numbers per token, centred and scaled; invertible.

    Args:
        image_shape: (3, H, W).
        patch: p; divides H and W.
        scaling: `one` scale for all dimensions or one for `each`.
    """

    def __init__(self, image_shape: tuple[int, int, int], patch: Count, scaling: Literal["one", "each"] = "one"):
        super().__init__(image_shape, check_patch(image_shape, patch), scaling)
        self.patch = patch
        self.register_buffer("mean", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("eigenvalues", torch.ones(self.shape[0], dtype=torch.float64))
        self.mean: Tensor
        self.eigenvalues: Tensor

    def to_raw(self, x: Tensor) -> Tensor:
        """Return the centred patches, (B, 3, H, W) -> (B, D, h, w)."""
        return patchify(x, self.patch) - self.mean  # (B, D, h, w)

    def from_raw(self, raw: Tensor) -> Tensor:
        """Return the image of centred patches, (B, D, h, w) -> (B, 3, H, W)."""
        return unpatchify(raw + self.mean, self.patch)

    def rotate(self, residue: Tensor) -> Tensor:
        """Project an image difference (B, 3, H, W) on the pixel basis: (B, D, h, w)."""
        return patchify(residue, self.patch)

    def basis_variances(self) -> Tensor:
        """Return the variance of training patches along each basis vector, (D,) float64."""
        return self.eigenvalues

    def variances(self) -> Tensor:
        """Return the variance of each latent dimension over the training patches, (d,) float64."""
        self.check_fitted()
        scale = self.scale.flatten().to(self.eigenvalues.device)  # on mps, which has no float64, they are on the CPU
        return self.eigenvalues / scale.double() ** 2

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Fit mean and variance of each of the D numbers in float64, in one pass over images in [-1, 1]."""
        total, square, count = torch.zeros(self.shape[0]).double(), torch.zeros(self.shape[0]).double(), 0
        for x in batches:
            patches = patchify(x, self.patch).cpu().double()
            total += patches.sum((0, 2, 3))
            square += (patches**2).sum((0, 2, 3))
            count += patches[:, 0].numel()
        mean = total / count
        self.mean.copy_(mean.reshape(-1, 1, 1))
        self.eigenvalues.copy_(square / count - mean**2)
        self.set_scale(self.eigenvalues)
        return self


class Identity(Tokenizer):
    """z = x, without centring, scale 1 (the space of DDPM, arXiv 2006.11239); needs no fit.

    Args:
        image_shape: (C, H, W).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(image_shape, image_shape, "one")
        self.fitted.fill_(True)

    @property
    def is_bounded(self) -> bool:
        """Return True: latents are images in [-1, 1]."""
        return True

    def to_raw(self, x: Tensor) -> Tensor:
        """Return the images unchanged."""
        return x

    def from_raw(self, raw: Tensor) -> Tensor:
        """Return the images unchanged."""
        return raw

    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Do nothing."""
        return self

"""Patch-wise linear tokenizers: PCA, AE, VAE (Sec. 4.2, arXiv 2401.14404).

Patches p x p x 3 are flattened to D = 3 p^2 numbers x; V (d x D) encodes, U (d x D) decodes. All three
subtract the mean patch first, which the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, Metrics, NonNegative
from ldae.nn.patchify import patchify, unpatchify
from ldae.tokenizers.base import Tokenizer
from ldae.tokenizers.patch_moments import PatchMoments


def check_patch(image_shape: tuple[int, int, int], patch: int, d: int | None = None) -> tuple[int, int, int]:
    """Return (d, h, w) of the latents, with D = 3 p^2 for d = None.

    Raises:
        ConfigError: the patch does not tile the image, or d exceeds D = 3 p^2.
    """
    channels, height, width = image_shape
    full = channels * patch**2
    if height % patch or width % patch:
        raise ConfigError("patch", patch, f"does not divide the image, {height} x {width} (data.size)")
    if d is not None and d > full:
        raise ConfigError("d", d, f"exceeds {channels}*p*p={full}; lower tokenizer.d or raise tokenizer.patch={patch}")
    return (full if d is None else d), height // patch, width // patch


class PatchLinear(Tokenizer):
    """Linear map of each patch, z = V (x - mean), x = U^T z + mean; subclasses fit V and U."""

    def __init__(self, image_shape: tuple[int, int, int], patch: int, d: int, scaling: Literal["one", "each"]):
        super().__init__(image_shape, check_patch(image_shape, patch, d), scaling)
        self.patch, self.d, self.D = patch, d, image_shape[0] * patch**2
        self.register_buffer("mean", torch.zeros(self.D))
        self.mean: Tensor

    @property
    def encoder(self) -> Tensor:
        """Return V, (d, D)."""
        raise NotImplementedError

    @property
    def decoder(self) -> Tensor:
        """Return U, (d, D)."""
        raise NotImplementedError

    def centred(self, x: Tensor) -> Tensor:
        """Return patches less the mean patch: (B, 3, H, W) -> (B, D, h, w)."""
        return patchify(x, self.patch) - self.mean.reshape(-1, 1, 1)

    def rows(self, x: Tensor) -> Tensor:
        """Return patches as rows: (B, 3, H, W) -> (B h w, D)."""
        return rearrange(x, "b c (h p) (w q) -> (b h w) (p q c)", p=self.patch, q=self.patch)

    def planar_rows(self, x: Tensor) -> Tensor:
        """Return patches as rows in the order of `planar_order`, several times as fast as `rows`."""
        return rearrange(x, "b c (h p) (w q) -> (b h w) (c p q)", p=self.patch, q=self.patch)

    @property
    def planar_order(self) -> Tensor:
        """Return the position in a planar row of each number of a row, (D,) int64."""
        return rearrange(torch.arange(self.D), "(c p q) -> (p q c)", p=self.patch, q=self.patch)

    def to_raw(self, x: Tensor) -> Tensor:
        """Project the centred patches, (B, 3, H, W) -> (B, d, h, w)."""
        return _apply(self.encoder, self.centred(x))  # (B, d, h, w)

    def from_raw(self, raw: Tensor) -> Tensor:
        """Return the patches of latents plus the mean patch, (B, d, h, w) -> (B, 3, H, W)."""
        patches = _apply(self.decoder.T, raw) + self.mean.reshape(-1, 1, 1)  # (B, D, h, w)
        return unpatchify(patches, self.patch)


class PatchPCA(PatchLinear):
    """PCA of patches: V the leading d eigenvectors of their covariance, U = V (Sec. 4.2, arXiv 2401.14404).

    The full D x D basis is kept, for the loss of step 12 (PCAWeighted).

    Args:
        image_shape: (3, H, W).
        patch: p; divides H and W.
        d: latent dimensions a token, at most D = 3 p^2.
        scaling: `one` scale for all d or one for `each` (whitening).

    Attributes:
        basis: (D, D) float32, rows are eigenvectors, the largest eigenvalue first.
        eigenvalues: (D,) float64, the variance along each.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], patch: Count, d: Count, scaling: Literal["one", "each"] = "one"
    ):
        super().__init__(image_shape, patch, d, scaling)
        self.register_buffer("basis", torch.eye(self.D))
        self.register_buffer("eigenvalues", torch.ones(self.D, dtype=torch.float64))
        self.basis: Tensor
        self.eigenvalues: Tensor

    @property
    def fits_bytes(self) -> bool:
        """Return True: sums of bytes are exact, and take less time than those of floats."""
        return True

    @property
    def encoder(self) -> Tensor:
        """Return the leading eigenvectors, (d, D)."""
        return self.basis[: self.d]

    @property
    def decoder(self) -> Tensor:
        """Return the leading eigenvectors, (d, D)."""
        return self.basis[: self.d]

    def rotate(self, residue: Tensor) -> Tensor:
        """Project an image difference (B, 3, H, W) on the full basis: (B, D, h, w), an isometry."""
        self.check_fitted()
        return _apply(self.basis, patchify(residue, self.patch))

    def basis_variances(self) -> Tensor:
        """Return the variance of training patches along each basis vector, (D,) float64."""
        return self.eigenvalues

    def variances(self) -> Tensor:
        """Return the variance of each latent dimension over the training patches, (d,) float64."""
        self.check_fitted()
        scale = self.scale.flatten().to(self.eigenvalues.device)  # on mps, which has no float64, they are on the CPU
        return self.eigenvalues[: self.d] / scale.double() ** 2

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Fit the eigenvectors of the exact covariance of all patches, in one pass over images.

        Images are (B, 3, H, W), float32 in [-1, 1] or uint8 (`fits_bytes`), with the same result to the bit on a CPU.
        The largest entry of every eigenvector is positive.
        """
        sums = PatchMoments(self.D, self.planar_rows)
        for x in batches:
            sums.add(x)
        mean, covariance = (moment[self.planar_order] for moment in sums.moments)
        covariance = covariance[:, self.planar_order]
        values, vectors = torch.linalg.eigh(covariance)
        basis = vectors.flip(1).T
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(basis * largest.sign())
        self.eigenvalues.copy_(values.flip(0).clamp(min=0))
        self.set_scale(self.eigenvalues[: self.d])
        return self


class PatchAE(PatchLinear):
    """Linear autoencoder of patches: ||x - U^T V x||^2 by gradient descent, U and V untied.

    Args: as PatchPCA.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], patch: Count, d: Count, scaling: Literal["one", "each"] = "one"
    ):
        super().__init__(image_shape, patch, d, scaling)
        V, U = torch.randn(2, d, self.D) * self.D**-0.5
        self.V, self.U = nn.Parameter(V), nn.Parameter(U)

    @property
    def encoder(self) -> Tensor:
        """Return V, (d, D)."""
        return self.V

    @property
    def decoder(self) -> Tensor:
        """Return U, (d, D)."""
        return self.U

    @property
    def needs_training(self) -> bool:
        """Return True: the tokenizer is trained by gradient descent."""
        return True

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Fit the mean patch before training; the latent scale is measured by `calibrate` after it."""
        total, count = torch.zeros(self.D).double(), 0
        for x in batches:
            patches = patchify(x, self.patch).cpu().double()
            total += patches.sum((0, 2, 3))
            count += patches[:, 0].numel()
        self.mean.copy_(total / count)
        return self

    def loss(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the squared error, summed over a patch, mean over patches."""
        patches = self.centred(x)
        return self._scored(patches, _apply(self.V, patches))

    def _scored(self, patches: Tensor, raw: Tensor) -> tuple[Tensor, Metrics]:
        errors = reduce((patches - _apply(self.U.T, raw)) ** 2, "b D h w -> b", "sum") / (self.shape[1] * self.shape[2])
        count = torch.full((), float(len(patches)), device=patches.device)
        return errors.mean(), {"reconstruction": (errors.detach().sum(), count)}


class PatchVAE(PatchAE):
    """VAE of patches: ||x - U^T z||^2 + kl * KL[N(V x, s^2) | N(0, I)], z ~ N(V x, s^2); latents are the means.

    The paper writes KL[V x | N] without a weight, so kl = 1. The log-variance is linear in x, as the mean. At kl = 1
    every direction of patch space with a variance below 1/2 collapses: patches of 16 x 16 at 256 px keep 16 dimensions,
    those of 4 x 4 at 32 px fewer, which a smaller `kl` keeps.

    Args: as PatchPCA, and
        kl: weight of the KL divergence (nats, summed over d).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch: Count,
        d: Count,
        scaling: Literal["one", "each"] = "one",
        kl: NonNegative = 1.0,
    ):
        super().__init__(image_shape, patch, d, scaling)
        self.kl = kl
        self.log_variance = nn.Conv2d(self.D, d, kernel_size=1)

    def loss(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the squared error plus kl * KL, both summed over a patch, mean over patches."""
        patches = self.centred(x)
        mean, log_variance = _apply(self.V, patches), self.log_variance(patches).clamp(-30, 20)
        raw = mean + torch.exp(log_variance / 2) * rng.normal(mean.shape)
        loss, metrics = self._scored(patches, raw)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean((1, 2))  # (B,) nats
        count = metrics["reconstruction"][1]
        return loss + self.kl * divergence.mean(), {**metrics, "kl": (divergence.detach().sum(), count)}


def _apply(matrix: Tensor, grid: Tensor) -> Tensor:
    return einsum(matrix, grid, "o i, b i h w -> b o h w")

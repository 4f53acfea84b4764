"""What every tokenizer promises, and how it is stored."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldae.core.errors import CheckpointError, NotFittedError
from ldae.core.files import load_tensors, save_tensors, sha256
from ldae.core.types import BatchGenerator, Metrics

FORMAT = "ldae-tokenizer-1"
CONSTANT = 1e-10  # share of the largest variance below which a variance is rounding; 8-bit quantisation leaves 1e-8


def varies(variance: Tensor) -> Tensor:
    """Return which of some variances (d,) exceed rounding, as booleans (d,); none where all images are one colour."""
    return variance > (CONSTANT * variance.max()).clamp(min=1e-12)


def _refuses(fn: Callable[[Tensor], Tensor], buffer: Tensor) -> bool:
    try:
        if buffer.dtype == torch.float64:
            fn(buffer)
    except TypeError:
        return True
    return False


@runtime_checkable
class HasBasis(Protocol):
    """A tokenizer whose latents are the first d coordinates on an orthonormal basis of patches.

    Attributes:
        eigenvalues: (D,) float64, the variance of training patches along each basis vector.
    """

    eigenvalues: Tensor

    def rotate(self, residue: Tensor) -> Tensor:
        """An image difference (B, 3, H, W) on the whole basis: (B, D, h, w). Keeps lengths."""


class Tokenizer(nn.Module, ABC):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, d, h, w) of unit average variance.

    `encode`, `stored` and `decode` raise NotFittedError before the tokenizer is fitted, trained or loaded; `to_raw` and
    `from_raw` work at any time, in training too.

    The latent scale is part of the tokenizer: z0 = raw latent / scale, so that one noise schedule means
    the same thing for every tokenizer. `one` number for all d keeps the relative size of the latents'
    dimensions; `each` gives every dimension unit variance (whitening, for a PCA).

    Args:
        image_shape: (3, H, W).
        shape: (d, h, w) of a latent.
        scaling: `one` or `each`.
    """

    def __init__(self, image_shape: tuple[int, int, int], shape: tuple[int, int, int], scaling: Literal["one", "each"]):
        super().__init__()
        self.image_shape, self.shape, self.scaling = image_shape, shape, scaling
        self.register_buffer("scale", torch.ones(shape[0], 1, 1))
        self.register_buffer("fitted", torch.tensor(False))
        self.scale: Tensor
        self.fitted: Tensor
        self._checked = False  # whether `fitted` was read and true: reading it once spares a GPU the wait

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tokens that a transformer reads a latent as."""
        return self.shape[1:]

    @property
    def costly(self) -> bool:
        """Whether encoding takes so long that latents are worth keeping."""
        return False

    @property
    def bounded(self) -> bool:
        """Whether a latent is the image itself, in [-1, 1]: what a sampler may hold a prediction to."""
        return False

    @property
    def needs_training(self) -> bool:
        """Whether gradient descent fits it (`loss`), rather than one pass over the data (`fit`)."""
        return False

    @abstractmethod
    def to_raw(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, d, h, w), before scaling."""

    @abstractmethod
    def from_raw(self, raw: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, 3, H, W). Never clips."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the raw latents, each (B, d, h, w); None where nothing is random."""
        return self.to_raw(x), None

    def check_fitted(self) -> None:
        """Raise NotFittedError unless the tokenizer was fitted, trained or loaded."""
        if self._checked or torch.compiler.is_compiling():
            return
        if not self.fitted:
            how = "train and calibrate it" if self.needs_training else "fit it on images in [-1, 1]"
            raise NotFittedError(f"tokenizer {type(self).__name__} is not fitted; {how}, or load it (load_tokenizer)")
        self._checked = True

    def assume_fitted(self) -> None:
        """Accept the tokenizer as it is: for shapes and costs, which do not depend on its values."""
        self._checked = True

    def encode(self, x: Tensor, rng: BatchGenerator | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, d, h, w): drawn from the posterior if there are draws, else its mean."""
        self.check_fitted()
        return self.sample_posterior(self.posterior_params(x), rng) if rng else self.to_raw(x) / self.scale

    def posterior_params(self, x: Tensor) -> Tensor:
        """All that is to be kept of an image when its latent is cached: the posterior, (B, d or 2 d, h, w)."""
        self.check_fitted()
        mean, deviation = self.posterior(x)
        return mean / self.scale if deviation is None else torch.cat([mean / self.scale, deviation / self.scale], 1)

    def sample_posterior(self, posterior_params: Tensor, rng: BatchGenerator | None = None) -> Tensor:
        """A latent (B, d, h, w) from what `stored` gave."""
        mean, *deviation = posterior_params.split(self.shape[0], dim=1)
        return mean + deviation[0] * rng.normal(mean.shape) if deviation and rng else mean

    def decode(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, 3, H, W); the inverse into image space, unclipped."""
        self.check_fitted()
        return self.from_raw(z * self.scale)

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fits what needs no gradients, the latent scale among it, in one pass over images in [-1, 1]."""

    def loss(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """The loss of tokenizers that are trained, for images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} is fitted, not trained")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tokenizer:
        """Move or cast as nn.Module does; buffers of float64 stay on the CPU where a device has no float64 (mps)."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and _refuses(fn, buffer)}
        for name in kept:
            self._buffers[name] = None
        try:
            return super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Measures the latent scale, float64, in one pass over images in [-1, 1], and marks the tokenizer fitted.

        The variance is that of latents drawn from the posterior: the means' and the posterior's own.
        """
        total, square, count = (torch.zeros(self.shape[0], dtype=torch.float64) for _ in range(3))
        for x in batches:
            mean, deviation = self.posterior(x)
            raw = mean.cpu().double()
            total += raw.sum((0, 2, 3))
            square += (raw**2).sum((0, 2, 3))
            if deviation is not None:
                square += (deviation.cpu().double() ** 2).sum((0, 2, 3))
            count += raw[:, 0].numel()
        self.set_scale(square / count - (total / count) ** 2)

    def set_scale(self, variance: Tensor) -> None:
        """Fixes the latent scale, given the variance of each raw dimension, (d,).

        A dimension that is constant over the training set gets the scale of `one`; where all are, the scale is 1.
        """
        variance = variance.clamp(min=0)
        average = torch.where(varies(variance).any(), variance.mean(), 1.0)
        chosen = torch.where(varies(variance), variance, average) if self.scaling == "each" else average
        floor = 1e-6 * variance.max()
        self.scale.copy_(chosen.clamp(min=floor).sqrt().expand(self.shape[0]).reshape(-1, 1, 1))
        self.fitted.fill_(True)

    @torch.no_grad()
    def statistics(self, x: Tensor) -> dict[str, float]:
        """Moments of the latents of images (B, 3, H, W) in [-1, 1], before scaling."""
        mean, deviation = self.posterior(x)
        found = {"latent_mean": float(mean.mean()), "latent_std": float(mean.std())}
        return found if deviation is None else {**found, "posterior_std": float(deviation.mean())}

    @torch.no_grad()
    def filters(self) -> Tensor:
        """What one unit of each latent dimension, at the centre of the grid, adds to an image: (d, 3, p, p)."""
        d, h, w = self.shape
        device = self.scale.device
        unit = torch.zeros(d, d, h, w, device=device)
        unit[range(d), range(d), h // 2, w // 2] = 1
        added = self.from_raw(unit * self.scale) - self.from_raw(torch.zeros(1, d, h, w, device=device))
        p, q = self.image_shape[1] // h, self.image_shape[2] // w
        return added[:, :, h // 2 * p :, w // 2 * q :][:, :, :p, :q]  # (d, 3, p, q)


def save_tokenizer(path: Path, tokenizer: Tokenizer, spec: Mapping[str, Any], data: str) -> str:
    """Writes a fitted tokenizer as safetensors.

    Args:
        path: the file.
        spec: the part's config, by which it is recognised when loaded.
        data: fingerprint of the images that it was fitted on.

    Returns:
        The file's SHA-256.

    Raises:
        NotFittedError: the tokenizer was never fitted.
    """
    tokenizer.check_fitted()
    known = {"format": FORMAT, "spec": json.dumps(dict(spec), sort_keys=True), "data": data}
    save_tensors(path, tokenizer.state_dict(), known | {"image_shape": json.dumps(tokenizer.image_shape)})
    return sha256(path)


def load_tokenizer(path: Path, tokenizer: Tokenizer, expected: str | None = None) -> str:
    """Fills `tokenizer` from a file written by save_tokenizer.

    Args:
        expected: the SHA-256 that the file must have, or None.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: the file is absent, damaged, not fitted, or of another tokenizer.
    """
    tensors = load_tensors(path)
    found = sha256(path)
    if expected is not None and found != expected:
        raise CheckpointError(f"{path} is damaged or another file: SHA-256 {found[:12]}, expected {expected[:12]}")
    own = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != theirs:
        differing = sorted(set(own.items()) ^ set(theirs.items()))[:4]
        raise CheckpointError(f"{path} holds another tokenizer: tensors differ ({differing})")
    if not tensors["fitted"]:
        raise CheckpointError(f"{path} holds a tokenizer that was never fitted")
    tokenizer.load_state_dict(tensors)
    return found

"""Interface of tokenizers, and their files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import CheckpointError, NotFittedError
from ldae.core.files import load_tensors, save_tensors, sha256
from ldae.core.types import BatchGenerator, Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "ldae-tokenizer-1"
CONSTANT = 1e-10  # variances below this fraction of the largest are rounding; 8-bit quantisation has 1e-8


def varies(variance: Tensor) -> Tensor:
    """Return the dimensions whose variance (d,) exceeds rounding, as booleans (d,)."""
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
    """Tokenizer whose latents are the first d coordinates on an orthonormal basis of patches.

    Methods alone: from Python 3.12 on, isinstance does not see the buffers of a module.
    """

    def basis_variances(self) -> Tensor:
        """Return the variance of training patches along each basis vector, (D,) float64."""

    def rotate(self, residue: Tensor) -> Tensor:
        """Project an image difference (B, 3, H, W) on the whole basis: (B, D, h, w), an isometry."""


class Tokenizer(nn.Module, ABC):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, d, h, w) of unit average variance.

    `encode`, `posterior_params` and `decode` raise NotFittedError before the tokenizer is fitted, trained or loaded;
    `to_raw` and `from_raw` always work, in training too.

    The latent scale is part of the tokenizer, z0 = raw latent / scale, so that a noise schedule has the same
    signal-to-noise ratio for every tokenizer. `one` scale for all d keeps the relative variances of the latent
    dimensions; `each` gives every dimension unit variance (whitening, for a PCA).

    Args:
        image_shape: (3, H, W).
        shape: (d, h, w) of a latent.
        scaling: `one` or `each`.

    Example:
        >>> tokenizer = PatchPCA(image_shape=(3, 32, 32), patch=4, d=16).fit([images])  # (B, 3, 32, 32) in [-1, 1]
        >>> z = tokenizer.encode(images)   # (B, 16, 8, 8)
        >>> x = tokenizer.decode(z)        # (B, 3, 32, 32)
        >>> tokenizer.plot("filters.png", images)
    """

    def __init__(self, image_shape: tuple[int, int, int], shape: tuple[int, int, int], scaling: Literal["one", "each"]):
        super().__init__()
        self.image_shape, self.shape, self.scaling = image_shape, shape, scaling
        self.register_buffer("scale", torch.ones(shape[0], 1, 1))
        self.register_buffer("fitted", torch.tensor(False))
        self.scale: Tensor
        self.fitted: Tensor
        self._checked = False  # `fitted` was read and true; reading it on a GPU synchronises

    @property
    def grid(self) -> tuple[int, int]:
        """Return (h, w) of the tokens that a transformer cuts a latent into."""
        return self.shape[1:]

    @property
    def is_costly(self) -> bool:
        """Return whether encoding is slow enough for latents to be cached."""
        return False

    @property
    def is_bounded(self) -> bool:
        """Return whether latents are images in [-1, 1], so that a sampler may clip predictions."""
        return False

    @property
    def needs_training(self) -> bool:
        """Return whether it is trained by gradient descent on `loss`, rather than fitted in one pass by `fit`."""
        return False

    @property
    def fits_bytes(self) -> bool:
        """Return whether `fit` also takes images as uint8 k, for x = 2 k / 255 - 1, with the same result."""
        return False

    @abstractmethod
    def to_raw(self, x: Tensor) -> Tensor:
        """Encode without scaling: (B, 3, H, W) -> (B, d, h, w)."""

    @abstractmethod
    def from_raw(self, raw: Tensor) -> Tensor:
        """Decode unscaled latents: (B, d, h, w) -> (B, 3, H, W), unclipped."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation of the raw latents, each (B, d, h, w); None if deterministic."""
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
        """Encode (B, 3, H, W) in [-1, 1] as latents (B, d, h, w): a posterior sample with `rng`, else the mean."""
        self.check_fitted()
        return self.sample_posterior(self.posterior_params(x), rng) if rng else self.to_raw(x) / self.scale

    def posterior_params(self, x: Tensor) -> Tensor:
        """Return mean and, if random, deviation of the posterior, to be cached: (B, d or 2 d, h, w)."""
        self.check_fitted()
        mean, deviation = self.posterior(x)
        return mean / self.scale if deviation is None else torch.cat([mean / self.scale, deviation / self.scale], 1)

    def sample_posterior(self, posterior_params: Tensor, rng: BatchGenerator | None = None) -> Tensor:
        """Draw latents (B, d, h, w) from the parameters of the posterior, or return its mean without `rng`."""
        mean, *deviation = posterior_params.split(self.shape[0], dim=1)
        return mean + deviation[0] * rng.normal(mean.shape) if deviation and rng else mean

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents: (B, d, h, w) -> (B, 3, H, W), unclipped."""
        self.check_fitted()
        return self.from_raw(z * self.scale)

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> Tokenizer:
        """Fit all that needs no gradients in one pass over images (B, 3, H, W) in [-1, 1]; return the tokenizer."""

    def loss(self, x: Tensor, rng: BatchGenerator) -> tuple[Tensor, Metrics]:
        """Return the training loss on images (B, 3, H, W) in [-1, 1], and metrics."""
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
        """Measure the latent scale in float64, in one pass over images in [-1, 1], and mark the tokenizer fitted.

        The variance is that of posterior samples: of the means, plus the mean posterior variance.
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
        """Set the latent scale from the variance of each raw dimension, (d,).

        A dimension that is constant over the training set gets the scale of `one`; if all are, the scale is 1.
        """
        variance = variance.clamp(min=0)
        average = torch.where(varies(variance).any(), variance.mean(), 1.0)
        per_dimension = torch.where(varies(variance), variance, average) if self.scaling == "each" else average
        floor = 1e-6 * variance.max()
        self.scale.copy_(per_dimension.clamp(min=floor).sqrt().expand(self.shape[0]).reshape(-1, 1, 1))
        self.fitted.fill_(True)

    @torch.no_grad()
    def statistics(self, x: Tensor) -> dict[str, float]:
        """Return moments of the unscaled latents of images (B, 3, H, W) in [-1, 1]."""
        mean, deviation = self.posterior(x)
        moments = {"latent_mean": float(mean.mean()), "latent_std": float(mean.std())}
        return moments if deviation is None else {**moments, "posterior_std": float(deviation.mean())}

    @torch.no_grad()
    def filters(self) -> Tensor:
        """Return the image patch of a unit of each latent dimension at the centre of the grid: (d, 3, p, q)."""
        return self._responses(*self.shape[1:])

    @torch.no_grad()
    def token_filters(self) -> Tensor:
        """Return the image patch of a unit of each latent number of the central token: (numbers, 3, p, p)."""
        return self._responses(*self.grid)

    def _responses(self, h: int, w: int) -> Tensor:
        """Return what a unit of each number of the central one of h x w parts of a latent adds to its image patch."""
        d, rows, columns = self.shape
        r, c = rows // h, columns // w  # latents in a part
        device = self.scale.device
        unit = torch.zeros(d * r * c, d, rows, columns, device=device)
        part = torch.eye(d * r * c, device=device).reshape(-1, d, r, c)
        unit[:, :, h // 2 * r :, w // 2 * c :][:, :, :r, :c] = part
        added = self.from_raw(unit * self.scale) - self.from_raw(torch.zeros(1, d, rows, columns, device=device))
        p, q = self.image_shape[1] // h, self.image_shape[2] // w
        return added[:, :, h // 2 * p :, w // 2 * q :][:, :, :p, :q]  # (d r c, 3, p, q)

    @torch.no_grad()
    def plot(self, path: Path | str | None = None, images: Tensor | None = None) -> Figure:
        """Plot the filters, each scaled to its own range, and reconstructions of images.

        Args:
            path: file to write (.png, .pdf, .svg); None writes none.
            images: (B, 3, H, W) in [-1, 1], in a row above their reconstructions; None plots the filters only.
        """
        from matplotlib.figure import Figure

        filters = self.filters().float().cpu()  # (d, 3, p, q)
        filters = filters / filters.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
        panels = {"filters": _mosaic(filters, columns=min(16, len(filters)))}
        if images is not None:
            decoded = self.decode(self.encode(images.to(self.scale.device)))
            panels["original above reconstruction"] = _mosaic(torch.cat([images.cpu(), decoded.cpu()]), len(images))
        heights = [
            8 * picture.shape[0] / picture.shape[1] + 0.5 for picture in panels.values()
        ]  # inches, title included
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, picture) in zip(rows, panels.items(), strict=True):
            axes.set_title(title)
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set_axis_off()
        if path is not None:
            figure.savefig(path)
        return figure


def _mosaic(tiles: Tensor, columns: int) -> Tensor:
    """Arrange tiles (N, 1 or 3, H, W) in [-1, 1] in rows with white borders: (H', W', 3) in [0, 1]."""
    tiles = ((tiles.float() + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
    white = tiles.new_ones(-len(tiles) % columns, *tiles.shape[1:])
    framed = F.pad(torch.cat([tiles, white]), (0, 1, 0, 1), value=1.0)  # (N', 3, H + 1, W + 1)
    return rearrange(framed, "(r c) k h w -> (r h) (c w) k", c=columns)


def save_tokenizer(path: Path, tokenizer: Tokenizer, spec: Mapping[str, Any], data: str) -> str:
    """Write a fitted tokenizer as safetensors.

    Args:
        path: the file.
        tokenizer: fitted.
        spec: the part's config, kept as metadata.
        data: fingerprint of the images that it was fitted on.

    Returns:
        The file's SHA-256.

    Raises:
        NotFittedError: the tokenizer was never fitted.
    """
    tokenizer.check_fitted()
    metadata = {"format": FORMAT, "spec": json.dumps(dict(spec), sort_keys=True), "data": data}
    save_tensors(path, tokenizer.state_dict(), metadata | {"image_shape": json.dumps(tokenizer.image_shape)})
    return sha256(path)


def load_tokenizer(path: Path, tokenizer: Tokenizer, expected: str | None = None) -> str:
    """Load a file written by save_tokenizer into `tokenizer`.

    Args:
        path: the file.
        tokenizer: of the same class and sizes.
        expected: SHA-256 that the file must have, or None.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: the file is absent, damaged, not fitted, or of another tokenizer.
    """
    tensors = load_tensors(path)
    digest = sha256(path)
    if expected is not None and digest != expected:
        raise CheckpointError(f"{path} is damaged or another file: SHA-256 {digest[:12]}, expected {expected[:12]}")
    expected_shapes = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    file_shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected_shapes != file_shapes:
        differing = sorted(set(expected_shapes.items()) ^ set(file_shapes.items()))[:4]
        raise CheckpointError(f"{path} holds another tokenizer: tensors differ ({differing})")
    if not tensors["fitted"]:
        raise CheckpointError(f"{path} holds a tokenizer that was never fitted")
    tokenizer.load_state_dict(tensors)
    return digest

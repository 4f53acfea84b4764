"""Initial states: x_T and the state of its corruption, as in Cold Diffusion (Sec. 5, arXiv 2208.09392)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, Fraction, NonNegative
from ldae.diffusion.corruptions.base import Corruption, Mixed, State
from ldae.diffusion.schedules import NoiseSchedule


class InitialState(nn.Module, ABC):
    """Distribution of x_T, (B, C, H, W), and of the corruption's state along its trajectory.

    Args:
        image_shape: (C, H, W).
        noise: standard deviation of Gaussian noise added to x_T, [-1, 1] scale. It breaks the symmetry of a flat
            x_T (0.002 in the published runs), is not part of the state, and is not removed by the sampler.
    """

    def __init__(self, image_shape: tuple[int, int, int], noise: NonNegative = 0.0):
        super().__init__()
        self.image_shape, self.noise = image_shape, noise

    @abstractmethod
    def draw(self, count: int, rng: BatchGenerator) -> tuple[Tensor, State]:
        """Draw x_T of `count` trajectories, (count, C, H, W), and their state."""

    def _add_noise(self, x_T: Tensor, rng: BatchGenerator) -> Tensor:
        return x_T + self.noise * rng.normal(x_T.shape) if self.noise else x_T


class MixedSignal(InitialState):
    """x_T is the signal that images are mixed with: noise, a flat colour, another image. Nothing is fitted.

    It differs from a corrupted image at T by gamma_T x0, where gamma_T is 2.5e-4 for the cosine with T = 200.

    Args: as InitialState, and
        corruption: its state is a `Mixed`: gaussian (fixed noise), colour_mask, blend.
    """

    def __init__(self, corruption: Corruption, image_shape: tuple[int, int, int], noise: NonNegative = 0.0):
        super().__init__(image_shape, noise)
        self.corruption = corruption

    def draw(self, count: int, rng: BatchGenerator) -> tuple[Tensor, State]:
        """Draw x_T and its state, as InitialState.

        Raises:
            ConfigError: the corruption does not mix images with a second signal.
        """
        state = self.corruption.draw(torch.zeros(count, *self.image_shape, device=rng.device), rng)
        if not isinstance(state, Mixed):
            name = type(self.corruption).__name__
            raise ConfigError("corruption", name, "mixes an image with nothing to start from; use init=coarse_gaussian")
        return self._add_noise(state.eps, rng), state


class StyledSignal(MixedSignal):
    """x_T is the signal of MixedSignal in the style of a picture: with the moments of its latent's channels.

    (1 - strength) eps + strength (std(s) (eps - mean(eps)) / std(eps) + mean(s)), mean and standard deviation of each
    channel over the positions: adaptive instance normalisation (Eq. 8, arXiv 1703.06868) of the signal eps to the
    latent s. The sources name a style-modulated start without a formula; this one is the suite's. In the latent of a
    patch-wise PCA, the moments are the picture's colours and how much there is of each component.

    Args: as MixedSignal, and
        style: file of the picture; whoever builds the state reads it, and calls `set_style`.
        strength: 0 leaves the signal as it is, 1 gives it the moments of the style.

    Attributes:
        style_mean, style_std: (C, 1, 1) moments of the style's latent.
    """

    def __init__(
        self,
        corruption: Corruption,
        image_shape: tuple[int, int, int],
        style: str,
        strength: Fraction = 1.0,
        noise: NonNegative = 0.0,
    ):
        super().__init__(corruption, image_shape, noise)
        self.style, self.strength = style, strength
        self.style_mean: Tensor | None = None
        self.style_std: Tensor | None = None

    def set_style(self, latent: Tensor) -> None:
        """Set the style to that of a picture's latent, (C, H, W)."""
        self.style_mean, self.style_std = latent.mean((1, 2), keepdim=True), latent.std((1, 2), keepdim=True)

    def draw(self, count: int, rng: BatchGenerator) -> tuple[Tensor, State]:
        """Draw x_T and its state, as MixedSignal.

        Raises:
            ConfigError: the style is not read, or the corruption does not mix images with a second signal.
        """
        if self.style_mean is None or self.style_std is None:
            raise ConfigError("style", self.style, "is not read; call set_style with the latent of the picture")
        _, state = super().draw(count, rng)
        assert isinstance(state, Mixed)
        eps, mean, std = state.eps, self.style_mean.to(state.eps), self.style_std.to(state.eps)
        deviation = eps.std((2, 3), keepdim=True).clamp(min=1e-3)  # of a flat colour it is 0 up to rounding
        styled = std * (eps - eps.mean((2, 3), keepdim=True)) / deviation + mean
        signal = torch.lerp(eps, styled, self.strength)
        return self._add_noise(signal, rng), replace(state, eps=signal)


class CoarseMixture(InitialState):
    """x_T of side x side constant blocks, from a mixture of K Gaussians over those of the training images' D(x0, T).

    The published runs have K = 1, a Gaussian with the mean and covariance of the training images. side is 1 for the
    blur that ends at the mean, n / 2^T for pixelation (2 of 128 pixels in the paper).

    Args: as InitialState, and
        corruption: a deterministic one: blur, pixelate.
        schedule: of the corruption; its last step is T.
        side: blocks in each axis; divides the image's side.
        components: K; None leaves it to whoever fits the mixture.

    Attributes:
        weights: (K,) float64, sum 1.
        means: (K, C side^2) float64.
        roots: (K, C side^2, C side^2) float64; root root^T is the covariance of a component.

    Raises:
        ConfigError: the blocks do not fit, or the corruption is random.
    """

    def __init__(
        self,
        corruption: Corruption,
        schedule: NoiseSchedule,
        image_shape: tuple[int, int, int],
        side: Count = 1,
        noise: NonNegative = 0.0,
        components: Count | None = 1,
    ):
        super().__init__(image_shape, noise)
        if image_shape[-1] % side:
            raise ConfigError("side", side, f"must divide {image_shape[-1]}")
        if type(corruption.draw(torch.zeros(1, *image_shape), BatchGenerator([0]))) is not State:
            raise ConfigError(
                "corruption", type(corruption).__name__, "is random; use init=mixed_signal, or another corruption"
            )
        self.corruption, self.schedule, self.side, self.components = corruption, schedule, side, components
        K, D = components or 1, image_shape[0] * side**2
        self.register_buffer("weights", torch.zeros(K, dtype=torch.float64))
        self.register_buffer("means", torch.zeros(K, D, dtype=torch.float64))
        self.register_buffer("roots", torch.zeros(K, D, D, dtype=torch.float64))
        self.weights: Tensor
        self.means: Tensor
        self.roots: Tensor

    def fit_gaussian(self, batches: Iterable[Tensor]) -> None:
        """Fit K = 1, mean and covariance (over N, not N - 1), in one pass over images (B, C, H, W) in [-1, 1]."""
        D = self.means.shape[1]
        total, square, count = self.means.new_zeros(D), self.means.new_zeros(D, D), 0
        for v in self.blocks(batches):
            total, square, count = total + v.sum(0), square + v.T @ v, count + len(v)
        mean = total / count
        self.set_mixture(torch.ones(1).double(), mean[None], (square / count - torch.outer(mean, mean))[None])

    def set_mixture(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set the mixture: weights (K,), means (K, C side^2), covariances (K, C side^2, C side^2)."""
        values, vectors = torch.linalg.eigh(covariances.to(self.means))
        roots = vectors * values.clamp(min=0).sqrt()[:, None]  # eigenvalues of grey images are 0 up to rounding
        self.weights, self.means, self.roots = weights.to(self.means), means.to(self.means), roots

    @torch.no_grad()
    def blocks(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the blocks of batches (B, C, H, W) of images that are corrupted at T, (B, C side^2) float64."""
        for x0 in batches:
            level = self.schedule.at(torch.full((len(x0),), self.schedule.T - 1, device=x0.device))
            x_T = self.corruption.at(x0, level, State())
            yield F.adaptive_avg_pool2d(x_T, self.side).flatten(1).double().to(self.means.device)

    def draw(self, count: int, rng: BatchGenerator) -> tuple[Tensor, State]:
        """Draw x_T and its state, as InitialState.

        Raises:
            ConfigError: it is not fitted.
        """
        if not self.weights.any():
            raise ConfigError(
                "part", "CoarseMixture", "is not fitted; call fit_gaussian with training images, or load its tensors"
            )
        z = rng.normal((count, self.means.shape[1])).double()
        means, roots = self.means.to(z), self.roots.to(z)
        if len(means) == 1:
            v = means[0] + z @ roots[0].T
        else:
            bounds = self.weights.to(z).cumsum(0)[:-1]  # (K - 1,)
            k = torch.searchsorted(bounds, rng.uniform((count,)).double(), right=True)  # (count,)
            v = means[k] + torch.einsum("bij,bj->bi", roots[k], z)
        blocks = v.float().reshape(count, -1, self.side, self.side)
        block = self.image_shape[-1] // self.side
        x_T = blocks.repeat_interleave(block, 2).repeat_interleave(block, 3)
        return self._add_noise(x_T, rng), State()

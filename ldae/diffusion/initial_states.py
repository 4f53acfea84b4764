"""Initial states of Cold Diffusion: x_T and the state of its corruption (Sec. 5, arXiv 2208.09392)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, NonNegative
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


class CoarseGaussian(InitialState):
    """x_T of side x side constant blocks, Gaussian with the mean and covariance of the training images' D(x0, T).

    The published mixture has one component of full covariance. side is 1 for the blur that ends at the mean, n / 2^T
    for pixelation (2 of 128 pixels in the paper).

    Args: as InitialState, and
        corruption: a deterministic one: blur, pixelate.
        schedule: of the corruption; its last step is T.
        side: blocks in each axis; divides the image's side.

    Attributes:
        mean, root: (C side^2,) and (C side^2, C side^2) float64; root root^T is the covariance.

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
    ):
        super().__init__(image_shape, noise)
        if image_shape[-1] % side:
            raise ConfigError("side", side, f"must divide {image_shape[-1]}")
        if type(corruption.draw(torch.zeros(1, *image_shape), BatchGenerator([0]))) is not State:
            raise ConfigError(
                "corruption", type(corruption).__name__, "is random; use init=mixed_signal, or another corruption"
            )
        self.corruption, self.schedule, self.side = corruption, schedule, side
        numbers = image_shape[0] * side**2
        self.register_buffer("mean", torch.zeros(numbers, dtype=torch.float64))
        self.register_buffer("root", torch.zeros(numbers, numbers, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self.mean: Tensor
        self.root: Tensor
        self.fitted: Tensor

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit mean and covariance (over N, not N - 1) in one pass over training images (B, C, H, W) in [-1, 1]."""
        total, square, count = torch.zeros_like(self.mean), torch.zeros_like(self.root), 0
        for x in batches:
            v = self.blocks(x).double().to(total.device)  # (B, C side^2)
            total, square, count = total + v.sum(0), square + v.T @ v, count + len(v)
        self.mean.copy_(total / count)
        values, vectors = torch.linalg.eigh(square / count - torch.outer(self.mean, self.mean))
        self.root.copy_(vectors * values.clamp(min=0).sqrt())  # eigenvalues of grey images are 0 up to rounding
        self.fitted.fill_(True)

    def blocks(self, x0: Tensor) -> Tensor:
        """Return the block values of images corrupted at T: (B, C, H, W) -> (B, C side^2)."""
        level = self.schedule.at(torch.full((len(x0),), self.schedule.T - 1, device=x0.device))
        x_T = self.corruption.at(x0, level, State())
        return F.adaptive_avg_pool2d(x_T, self.side).flatten(1)

    def draw(self, count: int, rng: BatchGenerator) -> tuple[Tensor, State]:
        """Draw x_T and its state, as InitialState.

        Raises:
            ConfigError: it is not fitted.
        """
        if not self.fitted:
            raise ConfigError(
                "part", "CoarseGaussian", "is not fitted; call fit with training images, or load its tensors"
            )
        z = rng.normal((count, len(self.mean))).double()
        v = self.mean.to(z) + z @ self.root.to(z).T
        blocks = v.float().reshape(count, -1, self.side, self.side)
        block = self.image_shape[-1] // self.side
        x_T = blocks.repeat_interleave(block, 2).repeat_interleave(block, 3)
        return self._add_noise(x_T, rng), State()

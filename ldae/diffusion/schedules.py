"""Noise schedules: gamma_t and sigma_t in z_t = gamma_t z0 + sigma_t eps.

T steps, t in {0, ..., T-1}, t = 0 the cleanest. Tables are float64; a level is float32.
Source: arXiv 2401.14404 Sec. 4 and 5; arXiv 2006.11239 (ddpm_linear); arXiv 2102.09672 (cosine).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, Count, NoiseLevel, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COPIES = WeakTensorKeyDictionary()  # table -> {device: its copy there}


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return table[index] on the device of `index`.

    Each table is copied to a device once: moving `index` to the host instead would synchronise at every step.

    Args:
        table: (T, ...).
        index: (...) int64.
    """
    if index.device == table.device:
        return table[index]
    copies: dict[torch.device, Tensor] = _COPIES.setdefault(table, {})
    if index.device not in copies:
        copies[index.device] = table.to(index.device)
    return copies[index.device][index]


SQRT_2, SQRT_THIRD = math.sqrt(2), math.sqrt(1 / 3)


class NoiseSchedule(ABC):
    """Signal scale gamma_t and noise deviation sigma_t for t in {0, ..., T-1}; gamma^2 + sigma^2 = 1 is not assumed.

    Attributes:
        T: number of steps.
        gamma, sigma: (T,) float64.

    Example:
        >>> schedule = Cosine(T=1000)
        >>> level = schedule.at(torch.tensor([0, 500, 999]))
        >>> level.gamma.shape
        torch.Size([3])
        >>> schedule.plot("cosine.png")
    """

    def __init__(self, T: int = 1000):
        self.T = T
        self.gamma, self.sigma = self.build_table()

    @abstractmethod
    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma, each (T,) float64."""

    def at(self, t: Tensor) -> NoiseLevel:
        """Return the noise levels of steps `t`, (B,) int64 in [0, T-1]."""
        return NoiseLevel(t, lookup(self.gamma, t).float(), lookup(self.sigma, t).float())

    def draw(self, count: int, rng: BatchGenerator) -> NoiseLevel:
        """Draw a noise level for each of `count` images, t uniform on {0, ..., T-1}."""
        return self.at(rng.integers(self.T, count))

    def plot(self, path: Path | str | None = None) -> Figure:
        """Plot gamma, sigma and the signal share gamma^2 / (gamma^2 + sigma^2) over t.

        Args:
            path: file to write (.png, .pdf, .svg); None writes none.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot(xlabel="t", title=f"{type(self).__name__}, T = {self.T}")
        share = self.gamma**2 / (self.gamma**2 + self.sigma**2)  # (T,), nan where both are 0
        curves = {"gamma": self.gamma, "sigma": self.sigma, "gamma² / (gamma² + sigma²)": share}
        for (label, values), style in zip(curves.items(), ("-", "--", ":"), strict=True):
            axes.plot(range(self.T), values.tolist(), style, label=label)
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


class DDPMLinear(NoiseSchedule):
    """beta linear from 1e-4 to 0.02, gamma_t^2 = prod(1 - beta) (Sec. 4, arXiv 2006.11239).

    For T other than 1000 the betas are scaled by 1000 / T, as improved DDPM and DiT do.

    Args:
        beta_first, beta_last: the ends, before scaling.
        rescale: scale the betas by 1000 / T; false suits sampling schedules of few steps (Sec. 2.4, arXiv 2104.07636).

    Raises:
        ConfigError: a beta reaches 1.
    """

    def __init__(self, T: Count = 1000, beta_first: Positive = 1e-4, beta_last: Positive = 0.02, rescale: bool = True):
        scale = 1000 / T if rescale else 1.0
        if rescale and scale * beta_last >= 1:
            raise ConfigError("T", T, f"makes the last beta {scale * beta_last:g} >= 1; use T > {1000 * beta_last:g}")
        check_below_one(beta_first=scale * beta_first, beta_last=scale * beta_last)
        self.beta = torch.linspace(scale * beta_first, scale * beta_last, T, dtype=torch.float64)
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma of every step, (T,) float64, from the betas."""
        return variance_preserving((1 - self.beta).cumprod(0))


class Cosine(NoiseSchedule):
    """gamma^2 along a squared cosine, beta clipped at 0.999 (Eq. 17, arXiv 2102.09672)."""

    def __init__(self, T: Count = 1000, offset: Positive = 0.008):
        self.offset = offset
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma of every step, (T,) float64, from ratios of squared cosines."""
        u = torch.arange(self.T + 1, dtype=torch.float64) / self.T
        f = torch.cos((u + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        return variance_preserving((1 - beta).cumprod(0))


class LinearGamma2(NoiseSchedule):
    """gamma_t^2 = 1 - (t + 1) / T: linear from almost 1 to 0 (step 4 of arXiv 2401.14404, Fig. 3).

    More of its steps lie at nearly clean latents than in DDPMLinear.
    """

    def __init__(self, T: Count = 1000):
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma of every step, (T,) float64, from a linear gamma^2."""
        return variance_preserving(1 - torch.arange(1, self.T + 1, dtype=torch.float64) / self.T)


class LinearSigma(NoiseSchedule):
    """gamma = 1 and sigma_t linear from 0 to sigma_max (step 9 of arXiv 2401.14404: sqrt(2))."""

    def __init__(self, T: Count = 1000, sigma_max: Positive = SQRT_2):
        self.sigma_max = sigma_max
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return ones and linear sigma, (T,) float64."""
        sigma = torch.linspace(0, self.sigma_max, self.T, dtype=torch.float64)
        return torch.ones_like(sigma), sigma


class LinearBlend(NoiseSchedule):
    """gamma_t = 1 - (t + 1) / T and sigma_t = (t + 1) / T: a cross-fade of two images (corruption=blend).

    With t counted from 1, gamma is (T - t) / T. The published animorphosis uses `Cosine` (code of arXiv 2208.09392).
    """

    def __init__(self, T: Count = 200):
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma of every step, (T,) float64, with sum 1."""
        sigma = torch.arange(1, self.T + 1, dtype=torch.float64) / self.T
        return 1 - sigma, sigma


class ConstantSigma(NoiseSchedule):
    """gamma = 1 and one sigma for all t (the single noise level of arXiv 2401.14404: sqrt(1/3))."""

    def __init__(self, T: Count = 1000, sigma: NonNegative = SQRT_THIRD):
        self.constant = sigma
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return ones and constant sigma, (T,) float64."""
        ones = torch.ones(self.T, dtype=torch.float64)
        return ones, self.constant * ones


def check_below_one(**betas: float) -> None:
    """Check that every beta is below 1, so that its step keeps some of the signal.

    Raises:
        ConfigError: a beta is 1 or more.
    """
    for key, beta in betas.items():
        if beta >= 1:
            raise ConfigError(key, beta, "must be below 1")


def variance_preserving(gamma2: Tensor) -> tuple[Tensor, Tensor]:
    """Return gamma and sigma with gamma^2 + sigma^2 = 1 from gamma^2, (T,) float64."""
    return gamma2.sqrt(), (1 - gamma2).clamp(min=0).sqrt()


class Quadratic(NoiseSchedule):
    """sqrt(beta) linear between the roots of both ends; not scaled by T (DDPM's code, arXiv 2006.11239).

    Raises:
        ConfigError: a beta reaches 1.
    """

    def __init__(self, T: Count = 1000, beta_first: Positive = 1e-4, beta_last: Positive = 0.02):
        check_below_one(beta_first=beta_first, beta_last=beta_last)
        self.beta = torch.linspace(math.sqrt(beta_first), math.sqrt(beta_last), T, dtype=torch.float64) ** 2
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma of every step, (T,) float64, from the betas."""
        return variance_preserving((1 - self.beta).cumprod(0))


class ContinuousGamma(NoiseSchedule):
    """Continuous levels: t uniform, then gamma^2 uniform in (gamma_t^2, gamma_{t-1}^2), gamma_{-1} = 1.

    Eq. 7 and Sec. 2.4 of arXiv 2104.07636, whose gamma is gamma^2 here. t and gamma are drawn for every image. A
    network conditioned on gamma instead of t can be sampled over any steps. `at` returns the discrete levels. The
    betas are not published; these, linear and not scaled by T, are those of public code.

    Raises:
        ConfigError: a beta reaches 1.
    """

    def __init__(self, T: Count = 2000, beta_first: Positive = 1e-6, beta_last: Positive = 1e-2):
        check_below_one(beta_first=beta_first, beta_last=beta_last)
        self.beta = torch.linspace(beta_first, beta_last, T, dtype=torch.float64)
        super().__init__(T)
        one = torch.ones(1, dtype=torch.float64)
        self.gamma2_bounds = torch.cat([one, self.gamma**2])  # gamma^2 of t = -1, 0, ..., T-1

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return gamma and sigma at the upper end of every interval, (T,) float64."""
        return variance_preserving((1 - self.beta).cumprod(0))

    def draw(self, count: int, rng: BatchGenerator) -> NoiseLevel:
        """Draw a noise level for each of `count` images: t uniform on {0, ..., T-1}, gamma from the interval of t."""
        t, u = rng.integers(self.T, count), rng.uniform((count,))
        low, high = lookup(self.gamma2_bounds, t + 1), lookup(self.gamma2_bounds, t)
        gamma2 = torch.lerp(low, high, u.double())  # (B,); u < 1, so never quite 1
        gamma, sigma = (x.float() for x in variance_preserving(gamma2))
        return NoiseLevel(t, gamma, sigma)


class Steps(NoiseSchedule):
    """Noiseless steps, gamma = 1 and sigma = 0: the corruption alone defines x_t (arXiv 2208.09392)."""

    def __init__(self, T: Count = 50):
        super().__init__(T)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return ones and zeros, (T,) float64."""
        return torch.ones(self.T, dtype=torch.float64), torch.zeros(self.T, dtype=torch.float64)


class ZeroInput(NoiseSchedule):
    """One step with gamma = sigma = 0: regression from the condition alone, SR3's baseline (Sec. 4, arXiv 2104.07636).

    Every sampler returns the network's prediction.
    """

    def __init__(self) -> None:
        super().__init__(T=1)

    def build_table(self) -> tuple[Tensor, Tensor]:
        """Return zeros and zeros, (1,) float64."""
        return torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

"""Corrupt test images as ImageNet-C and CIFAR-10-C do (arXiv 1903.12261), at five strengths."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldae.core.pixels import to_floats
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator, NoiseLevel
from ldae.diffusion.corruptions.snow import Snow
from ldae.diffusion.schedules import LinearSigma

STRENGTHS = (1, 2, 3, 4, 5)
SMALL = 64  # pixels; up to here images are corrupted as CIFAR-10-C's, above as ImageNet-C's


@dataclass(frozen=True)
class CommonCorruption:
    """A corruption of the test split of a data set.

    Attributes:
        name: key of CORRUPTIONS.
        strength: 1 to 5.
    """

    name: str
    strength: int

    @property
    def split(self) -> str:
        """Return the name of the corrupted split, e.g. `test~blur-3`."""
        return f"test~{self.name}-{self.strength}"

    @classmethod
    def of_split(cls, split: str) -> CommonCorruption | None:
        """Return the corruption of a split; None for a split without one."""
        _, _, corruption = split.partition("~")
        if not corruption:
            return None
        name, strength = corruption.rsplit("-", 1)
        return cls(name, int(strength))

    def __call__(self, batch: Batch, seed: int) -> Batch:
        """Return a batch with corrupted images: functions of the seed, the image and its index, not of the batch.

        Args:
            batch: images (B, 3, H, W) in [0, 1], and their indices.
            seed: of noise and snow.
        """
        side = batch.images.shape[-1]
        of_strength = CORRUPTIONS[self.name]
        parameter = (of_strength.small if side <= SMALL else of_strength.large)[self.strength - 1]
        seeds = [seed_of(seed, self.strength, index) for index in batch.index.tolist()]
        images = of_strength.apply(batch.images.float().cpu(), parameter, BatchGenerator(seeds))
        return replace(batch, images=images.clamp(0, 1).to(batch.images.device))


def noise(x: Tensor, sigma: float, rng: BatchGenerator) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`."""
    return x + sigma * rng.normal(x.shape)


def blur(x: Tensor, sigma: float, rng: BatchGenerator) -> Tensor:
    """Blur by a Gaussian of `sigma` pixels, cut at 4 sigma, with reflected borders."""
    from torchvision.transforms.functional import gaussian_blur  # takes two seconds

    radius = min(round(4 * sigma), x.shape[-1] - 1)
    return gaussian_blur(x, 2 * radius + 1, sigma)


def contrast(x: Tensor, factor: float, rng: BatchGenerator) -> Tensor:
    """Scale the distance of each pixel to the mean of its channel."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def pixelate(x: Tensor, fraction: float, rng: BatchGenerator) -> Tensor:
    """Shrink to a fraction of the size and enlarge again, both by box filters."""
    size = x.shape[-1]
    side = max(1, int(size * fraction))

    def through(picture: Image.Image) -> Image.Image:
        return picture.resize((side, side), Image.Resampling.BOX).resize((size, size), Image.Resampling.BOX)

    return _each_picture(x, through)


def jpeg(x: Tensor, quality: float, rng: BatchGenerator) -> Tensor:
    """Compress to JPEG of a quality, 1 to 100, and decompress."""

    def through(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _each_picture(x, through)


def snow(x: Tensor, parameters: tuple[float, ...], rng: BatchGenerator) -> Tensor:
    """Add snow by mean, deviation, zoom and threshold of the flakes, radius and sigma of their blur, and whitening."""
    mean, std, zoom, threshold, radius, sigma, kept = parameters
    shape, kernel = (3, x.shape[-2], x.shape[-1]), 2 * int(radius) + 1
    snowfall = Snow(LinearSigma(T=1), shape, mean, std, zoom, kernel, (threshold,) * 2, (sigma,) * 2, (kept,) * 2)
    x0, t = 2 * x - 1, torch.zeros(len(x), dtype=torch.long)
    level = NoiseLevel(t, torch.ones(len(x)), torch.zeros(len(x)))
    return (snowfall.at(x0, level, snowfall.draw(x0, rng)) + 1) / 2


def _each_picture(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change each image of (B, 3, H, W) in [0, 1] as 8-bit RGB picture."""
    pixels = (x * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pixels])
    return to_floats(changed)


@dataclass(frozen=True)
class Strengths:
    """A corruption with the parameters of its five strengths.

    Attributes:
        apply: function of images (B, 3, H, W) in [0, 1], parameter and random numbers.
        small: parameters of CIFAR-10-C.
        large: parameters of ImageNet-C.
    """

    apply: Callable[..., Tensor]
    small: tuple
    large: tuple


CORRUPTIONS: Mapping[str, Strengths] = {
    "noise": Strengths(noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": Strengths(blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "pixelate": Strengths(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "snow": Strengths(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "contrast": Strengths(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": Strengths(jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}


def mean_by_corruption(corruptions: Sequence[CommonCorruption], scores: Tensor) -> dict[str, float]:
    """Return the mean in percent of each corruption over its strengths, and of each strength over the corruptions.

    Args:
        corruptions: may be empty.
        scores: (len(corruptions), N), the scores of the images under each.
    """
    means: dict[str, list[float]] = {}
    for corruption, of_one in zip(corruptions, scores, strict=False):
        for name in (corruption.name, f"strength {corruption.strength}"):
            means.setdefault(name, []).append(100 * float(of_one.mean()))
    return {name: sum(values) / len(values) for name, values in means.items()}

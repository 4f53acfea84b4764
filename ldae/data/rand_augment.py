"""RandAugment by timm, as a function of (seed, epoch, index)."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Count, Fraction, NonNegative, Positive
from ldae.data.transforms import Augment, RandomResizedCrop

MAX_MAGNITUDE = 9.99  # at 10, timm's posterise keeps 0 bits, which Pillow refuses
SEEDS = 2**24  # number of distinct float32 uniforms on [0, 1)
RNG_LOCK = threading.Lock()  # global random numbers are common to all threads of a process


class RandAugment(Augment):
    """Random resized crop with a random flip, then RandAugment (arXiv 1909.13719) with timm's operations.

    Args:
        magnitude: mean magnitude of the operations, 0 to 10.
        deviation: standard deviation of the magnitude.
        operations: number of operations per image.
        low, high, flip: as in RandomResizedCrop.
    """

    is_exact = keeps_values = False

    def __init__(
        self,
        magnitude: NonNegative = 9.0,
        deviation: NonNegative = 0.5,
        operations: Count = 2,
        low: Positive = 0.2,
        high: Positive = 1.0,
        flip: Fraction = 0.5,
    ):
        from timm.data.auto_augment import rand_augment_transform

        if magnitude > 10:
            raise ConfigError("magnitude", magnitude, "must be 0 to 10")
        self.crop = RandomResizedCrop(low, high, flip)
        self.n = self.crop.n + 1  # the last one is the seed of the operations
        policy = f"rand-m{magnitude:g}-mstd{deviation:g}-n{operations}-inc1"
        hparams = {"img_mean": (128, 128, 128), "magnitude_max": MAX_MAGNITUDE}
        self.operations = rand_augment_transform(policy, hparams)

    def boxes(self, u: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Return the crop boxes of the random resized crop, (B, 4) float64."""
        return self.crop.boxes(u[:, :-1], height, width)

    def flips(self, u: Tensor) -> Tensor:
        """Return whether each image is flipped, (B,) bool."""
        return self.crop.flips(u[:, :-1])

    def finish(self, pixels: Tensor, u: Tensor) -> Tensor:
        """Apply the random operations to an image, (3, H, W) uint8."""
        image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
        with RNG_LOCK, seed_global_rng(int(u[-1] * SEEDS)):
            return torch.from_numpy(np.array(self.operations(image))).movedim(-1, 0)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise ConfigError("augment", "rand_augment", "would move images away from their masks; use another")
        crops = (self.crop(images, u[:, :-1]) * 255).round().byte().cpu()
        return torch.stack([self.finish(*pair) for pair in zip(crops, u.cpu(), strict=True)]).to(images) / 255


@contextlib.contextmanager
def seed_global_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and NumPy, which timm uses, and restore them after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)

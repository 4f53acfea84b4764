"""RandAugment on crops: timm's operations, each image's own function of (seed, epoch, index)."""

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

HIGHEST = 9.99  # at 10 timm's posterise keeps 0 bits, which Pillow refuses
SEEDS = 2**24  # as many as a float32 uniform on [0, 1) tells apart
ONE = threading.Lock()  # those numbers belong to the whole process, and threads of a stream share it


class RandAugment(Augment):
    """A random resized crop, mirrored half of the time, then random operations (arXiv 1909.13719), as timm has them.

    Args:
        magnitude: of the operations, 0 to 10.
        deviation: of that magnitude from operation to operation.
        operations: of an image.
        low, high, flip: of the crop.
    """

    exact = moves = False

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
        self.n = self.crop.n + 1  # the last: what the operations are drawn with
        rule = f"rand-m{magnitude:g}-mstd{deviation:g}-n{operations}-inc1"
        hints = {"img_mean": (128, 128, 128), "magnitude_max": HIGHEST}
        self.operations = rand_augment_transform(rule, hints)

    def boxes(self, u: Tensor, height: Tensor, width: Tensor) -> Tensor:
        return self.crop.boxes(u[:, :-1], height, width)

    def flips(self, u: Tensor) -> Tensor:
        return self.crop.flips(u[:, :-1])

    def finish(self, pixels: Tensor, u: Tensor) -> Tensor:
        image = Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())
        with ONE, seeded(int(u[-1] * SEEDS)):
            return torch.from_numpy(np.array(self.operations(image))).movedim(-1, 0)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise ConfigError("augment", "rand_augment", "would move images away from their masks; use another")
        cut = (self.crop(images, u[:, :-1]) * 255).round().byte().cpu()
        return torch.stack([self.finish(x, own) for x, own in zip(cut, u, strict=True)]).to(images) / 255


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global random numbers, which timm draws from, begin at `seed`; then they are put back."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)

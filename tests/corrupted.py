"""Helpers of the tests of corruptions: images, steps, corruptions from configs."""

from __future__ import annotations

import functools

import torch

from ldae.app.compose import compose, resolved
from ldae.config.build import Parts
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.schedules import Cosine

SHAPE = (3, 32, 32)
TRIED = {"colour_mask": 200}  # with few steps its holes are no wider than a pixel; 3 steps for the others


def images(count=4, seed=0, n=32):
    """Return images of numbers that are uniform in [-1, 1]."""
    return 2 * torch.rand(count, 3, n, n, generator=torch.Generator().manual_seed(seed)) - 1


def at(*t):
    return Cosine(T=max(*t, 1) + 1).at(torch.tensor(t))


@functools.cache
def built(name, T=None):
    """The corruption of a config, for 32 x 32 pixels, and its schedule."""
    argv = ("data=cifar10", "schedule=cosine", f"schedule.T={T or TRIED.get(name, 3)}")
    parts = Parts(resolved(compose("pretrain", [f"corruption={name}", *argv])))
    corruption = parts.corruption
    if isinstance(corruption, Blend):
        corruption.set_images(
            torch.randint(256, (5, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
        )
    return corruption, parts.schedule

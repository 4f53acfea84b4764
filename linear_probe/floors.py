"""Floors: what a linear head or a neighbour finds without any learning by denoising."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from linear_probe.features import Cell, Features
from linear_probe.scaling import projector

Transform = Callable[[Tensor], Tensor]

PIXELS = Cell(pooling="none")


def raw_pixels(images: Tensor) -> Mapping[Cell, Tensor]:
    """Images (B, 3, H, W) in [0, 1] as features: {cell: (B, 3HW)}."""
    return {PIXELS: images.flatten(1)}


def whole_image_pca(train: Features, dimensions: int) -> Transform:
    """The leading principal components of whole training images: (N, 3HW) -> (N, dimensions)."""
    return projector(train.x, min(dimensions, train.x.shape[1], len(train)))

"""Floors: what a linear head or a neighbour finds without any learning by denoising."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from linear_probe.features import FeatureKey, Features
from linear_probe.scaling import Affine, projector

PIXELS = FeatureKey(pooling="none")
SIDE = 32  # of images whose pixels are features, at most: a head on 3 * 256 * 256 numbers cannot be fitted


def raw_pixels(images: Tensor) -> Mapping[FeatureKey, Tensor]:
    """Images (B, 3, H, W) in [0, 1] as features, larger ones reduced by averaging: {cell: (B, 3hw)}, h, w <= 32."""
    height, width = (min(SIDE, side) for side in images.shape[2:])
    return {PIXELS: F.adaptive_avg_pool2d(images, (height, width)).flatten(1)}


def pixels_name(size: int) -> str:
    """Return the name of the raw-pixel baseline for images of `size` pixels a side."""
    return "raw pixels" if size <= SIDE else f"raw pixels, reduced to {SIDE} x {SIDE}"


def whole_image_pca(train: Features, dimensions: int) -> Affine:
    """The leading principal components of whole training images: (N, 3hw) -> (N, dimensions)."""
    return projector(train.x, min(dimensions, train.x.shape[1], len(train)))

"""Features of baselines that need no pretraining: raw pixels and principal components of whole images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from linear_probe.features import FeatureKey, Features
from linear_probe.scaling import Affine, projector

PIXELS = FeatureKey(pooling="none")
SIDE = 32  # pixels; larger images are reduced, since a head on 3 * 256 * 256 features cannot be fitted


def raw_pixels(images: Tensor) -> Mapping[FeatureKey, Tensor]:
    """Flatten images to features; average-pool larger ones to 32 pixels a side.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        {PIXELS: (B, 3hw)} with h, w <= 32.
    """
    height, width = (min(SIDE, side) for side in images.shape[2:])
    return {PIXELS: F.adaptive_avg_pool2d(images, (height, width)).flatten(1)}


def pixels_name(size: int) -> str:
    """Return the name of the raw-pixel baseline for images of `size` pixels a side."""
    return "raw pixels" if size <= SIDE else f"raw pixels, reduced to {SIDE} x {SIDE}"


def whole_image_pca(train: Features, dimensions: int) -> Affine:
    """Fit PCA of whole training images.

    Args:
        train: raw pixels, (N, 3hw).
        dimensions: number of leading components, at most min(N, 3hw).

    Returns:
        The map (N, 3hw) -> (N, dimensions).
    """
    return projector(train.x, min(dimensions, train.x.shape[1], len(train)))

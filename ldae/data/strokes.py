"""Guides for SDEdit from images: flat regions in the colours of a palette, as a person would paint them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ldae.core.pixels import to_floats

FITTED = 16_384  # pixels of an image that its palette is fitted to, at most
PASSES = 3  # of the filter that makes regions flat; more of them round the regions off


def simulate_strokes(
    images: Tensor, width: int, colours: int, palette: Literal["median_cut", "kmeans"] = "median_cut"
) -> Tensor:
    """Return images as if painted in strokes.

    With `median_cut` a median filter precedes the palette (App. C, arXiv 2108.01073); single pixels of a colour remain.
    With `kmeans` every pixel gets the nearest of the image's k-means colours, and then, three times, the
    commonest colour around it, which leaves flat regions.

    Args:
        images: (B, 3, H, W) in [0, 1].
        width: side of the filter in pixels, odd; 23 at 256 px in the paper, so 3 at 32 px.
        colours: size of each image's palette; 6 in the paper.
        palette: how its colours are chosen.

    Returns:
        (B, 3, H, W) in [0, 1], multiples of 1/255.
    """
    pixels = (images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()  # (B, H, W, 3)
    paint = _median_cut if palette == "median_cut" else _flat_regions
    return to_floats(np.stack([paint(image, width, colours) for image in pixels])).to(images.device)


def _median_cut(image: np.ndarray, width: int, colours: int) -> np.ndarray:
    smooth = Image.fromarray(image).filter(ImageFilter.MedianFilter(width))
    return np.array(smooth.quantize(colours).convert("RGB"))


def _flat_regions(image: np.ndarray, width: int, colours: int) -> np.ndarray:
    """Paint an image (H, W, 3) uint8 in its k-means colours, each pixel in the commonest of its neighbourhood."""
    from scipy.ndimage import uniform_filter
    from sklearn.cluster import KMeans

    pixels = image.reshape(-1, 3).astype(np.float64)
    distinct = np.unique(image.reshape(-1, 3), axis=0)
    fitted = pixels[:: -(-len(pixels) // FITTED)] if len(distinct) > colours else distinct.astype(np.float64)
    count = min(colours, len(np.unique(fitted, axis=0)))
    model = KMeans(count, n_init=1, random_state=0).fit(fitted)
    nearest = model.predict(pixels).reshape(image.shape[:2])  # (H, W)
    for _ in range(PASSES):
        own = [(nearest == k).astype(np.float64) for k in range(count)]
        around = [uniform_filter(one, width, mode="nearest") + 1e-6 * one for one in own]  # a tie keeps its own
        nearest = np.argmax(around, axis=0)
    return np.asarray(model.cluster_centers_.round().astype(np.uint8)[nearest])

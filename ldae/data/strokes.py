"""Pictures as if painted in a few strokes: guides for an editor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor


def strokes(images: Tensor, width: int, colours: int) -> Tensor:
    """Medians over width x width pixels, then few colours: what arXiv 2108.01073 (App. C) simulates strokes by.

    Args:
        images: (B, 3, H, W) in [0, 1].
        width: odd, in pixels; 23 at 256 px in the paper, so 3 at 32 px.
        colours: of each picture (median cut); 6 in the paper.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    pixels = (images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    return torch.stack([_painted(Image.fromarray(p), width, colours) for p in pixels]).to(images.device)


def _painted(picture: Image.Image, width: int, colours: int) -> Tensor:
    flat = picture.filter(ImageFilter.MedianFilter(width)).quantize(colours).convert("RGB")
    return torch.from_numpy(np.asarray(flat).copy()).movedim(-1, 0).float() / 255

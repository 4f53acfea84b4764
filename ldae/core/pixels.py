"""Convert 8-bit pixels to what networks take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_floats(pixels: np.ndarray | Tensor) -> Tensor:
    """Return 8-bit images as floats with the channels first in memory too.

    Convolutions choose their algorithm by the layout in memory, and some processors round differently with each.

    Args:
        pixels: (..., H, W, C) uint8.

    Returns:
        (..., C, H, W) float32 in [0, 1], contiguous.
    """
    return torch.as_tensor(pixels).movedim(-1, -3).contiguous().float() / 255

"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """10 log10(peak^2 / MSE) over all images together, dB; at most 120 (equal images).

    Args:
        a, b: (B, ...) images of one range, `peak` wide.
    """
    mse = ((a.float() - b.float()) ** 2).mean()
    return float(10 * torch.log10(peak**2 / mse.clamp(min=1e-12 * peak**2)))

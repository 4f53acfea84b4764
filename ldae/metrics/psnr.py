"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Return the mean over images of 10 log10(peak^2 / MSE of the image), in dB; an image counts at most 120.

    The PSNR of the error over all images together is another, smaller number: -20 log10(RMSE / peak).

    Args:
        a, b: (B, ...) images of one range, `peak` wide.
    """
    mse = ((a.float() - b.float()) ** 2).flatten(1).mean(1)  # (B,)
    return float((10 * torch.log10(peak**2 / mse.clamp(min=1e-12 * peak**2))).mean())

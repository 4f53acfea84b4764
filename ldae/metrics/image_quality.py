"""Distances of images to their references: PSNR, SSIM, RMSE, and the consistency of super-resolution."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Return the mean over images of 10 log10(peak^2 / MSE of the image) in dB, each at most 120.

    The PSNR of the MSE over all images together, -20 log10(RMSE / peak), is lower.

    Args:
        a, b: (B, ...) images.
        peak: width of their range.
    """
    mse = ((a.float() - b.float()) ** 2).flatten(1).mean(1)  # (B,)
    return float((10 * torch.log10(peak**2 / mse.clamp(min=1e-12 * peak**2))).mean())


WINDOW = 11  # pixels, side of the Gaussian window
MIN_SIDE = WINDOW  # pixels, minimum side of an image


def ssim(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Return the mean SSIM (Eq. 13, Wang et al., IEEE TIP 13(4), 2004) over images; 1 for equal ones.

    The Gaussian window has sigma 1.5. As in Wang's code and in scikit-image, the mean leaves out pixels whose window
    crosses the border; torchmetrics includes them, with a reflected image.

    Args:
        a, b: (B, C, H, W) images of at least 11 pixels on a side.
        peak: width of their range.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, ssim_map = structural_similarity_index_measure(a.float(), b.float(), data_range=peak, return_full_image=True)
    border = WINDOW // 2
    return float(ssim_map[..., border:-border, border:-border].mean())


def rmse(a: Tensor, b: Tensor) -> float:
    """Return the root of the mean squared difference over all values of all images (Cold Diffusion's RMSE).

    Args:
        a, b: (B, ...) images; Cold Diffusion's are in [0, 1].
    """
    return float(((a.double() - b.double()) ** 2).mean().sqrt())


def consistency(low: Tensor, downsampled: Tensor) -> float:
    """Return 10^5 times the mean squared error between low-resolution images and their downsampled reconstructions.

    Args:
        low: (B, C, h, w) in [0, 1], the condition of super-resolution.
        downsampled: (B, C, h, w), the reconstructions, downsampled by the operator that made `low`.
    """
    return float(1e5 * ((low.double() - downsampled.double()) ** 2).mean())

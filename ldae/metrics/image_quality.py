"""Compare images with their references: PSNR, SSIM, RMSE, and the consistency of super-resolution."""

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


WINDOW = 11  # pixels, of the Gaussian
SMALLEST = WINDOW  # side of an image that the window fits into


def ssim(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Return the mean SSIM (Eq. 13, Wang et al., IEEE TIP 13(4), 2004) over images; 1 for equal ones.

    Gaussian window of sigma 1.5. As in Wang's code and in scikit-image, the mean is over the pixels around which the
    whole window lies inside the image; torchmetrics alone would count those at the border too, of a reflected image.

    Args:
        a, b: (B, C, H, W) images of one range, `peak` wide, at least 11 pixels on a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, whole = structural_similarity_index_measure(a.float(), b.float(), data_range=peak, return_full_image=True)
    border = WINDOW // 2
    return float(whole[..., border:-border, border:-border].mean())


def rmse(a: Tensor, b: Tensor) -> float:
    """The root of the mean squared difference over all numbers of all images together (Cold Diffusion's RMSE).

    Args:
        a, b: (B, ...) images; Cold Diffusion's are in [0, 1].
    """
    return float(((a.double() - b.double()) ** 2).mean().sqrt())


def consistency(low: Tensor, lowered: Tensor) -> float:
    """Mean squared error x 10^5 between a small image and the large answer made small again.

    Args:
        low: (B, C, h, w) in [0, 1], what was given.
        lowered: the answer, made small by the operator that made `low`.
    """
    return float(1e5 * ((low.double() - lowered.double()) ** 2).mean())

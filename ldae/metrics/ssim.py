"""Structural similarity, by torchmetrics."""

from __future__ import annotations

from torch import Tensor

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

"""Structural similarity, by torchmetrics."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 12  # pixels; the Gaussian window is 11 wide


def ssim(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Mean SSIM (Eq. 13, Wang et al., IEEE TIP 13(4), 2004), Gaussian window of sigma 1.5; 1 for equal images.

    Args:
        a, b: (B, C, H, W) images of one range, `peak` wide, at least 12 pixels on a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(a.float(), b.float(), data_range=peak)
    assert isinstance(found, Tensor)  # a pair only where its parts are asked for
    return float(found)

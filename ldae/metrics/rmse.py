"""Root mean squared error, and the consistency of super-resolution."""

from __future__ import annotations

from torch import Tensor


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

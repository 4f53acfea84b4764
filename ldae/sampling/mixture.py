"""Fit mixtures of Gaussians with the number of components that BIC selects."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldae.core.errors import DataError

MOST = 10  # components that are tried where the number is left open


@dataclass(frozen=True)
class Mixture:
    """Mixture of K Gaussians.

    Attributes:
        weights: (K,) float64, sum 1.
        means: (K, D) float64.
        covariances: (K, D, D) float64.
        bic: {K: Bayesian information criterion} of every number of components that was tried.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    bic: dict[int, float]


def fit_mixture(values: Tensor, components: int | None = None, seed: int = 0) -> Mixture:
    """Fit a mixture of Gaussians of full covariance by expectation maximisation.

    BIC = k ln N - 2 ln L with k = K - 1 + K D + K D (D + 1) / 2 free parameters (Schwarz 1978).

    Args:
        values: (N, D).
        components: K; None for the K of 1 to 10 with the least BIC.
        seed: of the initial means (k-means).

    Raises:
        DataError: there are fewer values than components.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = values.double().cpu().numpy()
    candidates = range(1, min(MOST, len(x)) + 1) if components is None else [components]
    if len(x) < max(candidates, default=1):
        raise DataError(f"init.components={components}: {len(x)} training images cannot have so many; give fewer")
    fits: dict[int, Any] = {}
    with warnings.catch_warnings():
        # the likelihood is flat near its maximum where there are more components than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in candidates:
            fits[k] = GaussianMixture(k, covariance_type="full", random_state=seed).fit(x)
    bic = {k: float(fit.bic(x)) for k, fit in fits.items()}
    best = fits[min(bic, key=lambda k: bic[k])]
    weights, means, covariances = (torch.from_numpy(a) for a in (best.weights_, best.means_, best.covariances_))
    return Mixture(weights, means, covariances, bic)

"""Mixtures of Gaussians: BIC selects the number of components that the values have."""

from __future__ import annotations

import math

import pytest
import torch

from ldae.core.errors import DataError
from ldae.sampling.mixture import fit_mixture

MEANS = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.0, -0.4], [-0.5, 0.9, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def draw(count, seed=0):
    """Values of a mixture of three components of deviation 0.1."""
    g = torch.Generator().manual_seed(seed)
    k = torch.multinomial(WEIGHTS, count, replacement=True, generator=g)
    return MEANS[k] + 0.1 * torch.randn(count, 3, generator=g, dtype=torch.float64)


def test_bic_selects_the_number_of_components_of_a_known_mixture():
    fit = fit_mixture(draw(3000))
    assert sorted(fit.bic) == list(range(1, 11))
    assert min(fit.bic, key=fit.bic.get) == len(fit.weights) == 3
    order = fit.weights.argsort()
    assert torch.allclose(fit.weights[order], WEIGHTS, atol=0.03)
    assert torch.allclose(fit.means[order], MEANS, atol=0.02)
    assert torch.allclose(fit.covariances, 0.01 * torch.eye(3).double().expand(3, 3, 3), atol=2e-3)


def test_one_gaussian_is_not_divided():
    values = 0.3 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert len(fit_mixture(values).weights) == 1


def test_bic_is_that_of_the_closed_form_for_one_component():
    """The likelihood of a Gaussian at its own moments is (2 pi e)^(-ND/2) |S|^(-N/2)."""
    values = draw(500)
    fit = fit_mixture(values, 1)
    N, D = values.shape
    log_likelihood = -N / 2 * (D * math.log(2 * math.pi * math.e) + torch.logdet(values.T.cov(correction=0)).item())
    expected = (D + D * (D + 1) / 2) * math.log(N) - 2 * log_likelihood
    assert fit.bic[1] == pytest.approx(expected, rel=1e-4)


def test_grey_values_can_be_fitted():
    grey = draw(400)[:, :1].expand(400, 3)
    assert len(fit_mixture(grey, 2).weights) == 2


def test_more_components_than_values_are_refused():
    with pytest.raises(DataError, match="components=5"):
        fit_mixture(draw(4), 5)

"""Logistic regression against scikit-learn, and linear maps of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from linear_probe import linear
from linear_probe.linear import Logistic, predict
from linear_probe.scaling import principal, projector, standardiser, whitener


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def loss_of(theta, x, y, penalty):
    logits = x.double() @ theta[:-1].double() + theta[-1].double()
    return nn.functional.cross_entropy(logits, y) + penalty / 2 * theta[:-1].double().square().sum()


@pytest.fixture(scope="module")
def wide(digits):
    """Fewer images than features."""
    x, y, held, truth = digits
    matrix = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    return torch.tanh(x[:90] @ matrix / 60), y[:90], torch.tanh(held @ matrix / 60), truth


@pytest.fixture(scope="module")
def grey(digits):
    """Every feature three times, as in the pixels of grey images."""
    x, y, held, truth = digits
    return x.repeat(1, 3), y, held.repeat(1, 3), truth


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
@pytest.mark.parametrize("features", ["digits", "wide", "grey"])
def test_logistic_regression_is_scikit_learns(request, features, penalty):
    x, y, held, truth = request.getfixturevalue(features)
    scale = standardiser(x)
    theta = Logistic(scale(x), y, 10).fit(penalty)
    reference = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-8, max_iter=5000).fit(scale(x).double().numpy(), y)
    theirs = torch.from_numpy(np.vstack([reference.coef_.T, reference.intercept_]))
    ours, best = loss_of(theta, scale(x), y, penalty), loss_of(theirs, scale(x), y, penalty)
    assert ours.item() == pytest.approx(best.item(), rel=1e-4)
    a = (predict(theta, scale(held)) == truth).double().mean()
    b = reference.score(scale(held).numpy(), truth)
    assert abs(100 * (a - b)) <= 0.17 + 1e-9  # one image of 597


@pytest.mark.parametrize("small", [True, False])
def test_a_loss_near_0_is_the_optimum_too(digits, monkeypatch, small):
    """Few images that a small penalty lets the features separate: limits of a loss near 1 would end the fit early."""
    monkeypatch.setattr(linear, "SMALL", 2**15 if small else 0)
    x, y = digits[0][:90], digits[1][:90]
    for seed in range(6):
        z = torch.tanh(x @ torch.randn(64, 300, generator=torch.Generator().manual_seed(seed)) / 60)
        z = standardiser(z)(z)
        reference = LogisticRegression(C=1 / (90 * 1e-3), tol=1e-8, max_iter=5000).fit(z.double().numpy(), y)
        best = loss_of(torch.from_numpy(np.vstack([reference.coef_.T, reference.intercept_])), z, y, 1e-3)
        assert best < 0.01
        assert loss_of(Logistic(z, y, 10).fit(1e-3), z, y, 1e-3).item() == pytest.approx(best.item(), rel=1e-4)


@pytest.mark.parametrize("correlated", [False, True])
def test_features_are_rotated_where_they_are_correlated_and_the_optimum_is_the_same(monkeypatch, correlated):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (2000,), generator=generator)
    x = torch.randn(2000, 24, generator=generator) + torch.randn(5, 24, generator=generator)[y] / 3
    if correlated:
        x = x + 3 * x[:, :1]
    x = standardiser(x)(x)
    model = Logistic(x, y, 5)
    assert (model.basis is None) == (not correlated)
    monkeypatch.setattr(linear, "are_independent", lambda x: False)
    start = torch.randn(25, 5, generator=generator)
    losses = [loss_of(m.fit(1e-2, start=start), x, y, 1e-2).item() for m in (model, Logistic(x, y, 5))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert model.n_iter < 40


def test_a_fit_ends_before_its_line_searches_step_in_the_noise(monkeypatch):
    """One evaluation an iteration, and a few more; in the noise of single precision it takes up to twenty."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (20000,), generator=generator)
    x = torch.randn(20000, 64, generator=generator) + torch.randn(10, 64, generator=generator)[y] / 4
    model = Logistic(standardiser(x)(x), y, 10)
    evaluate, calls = model._evaluate, []
    monkeypatch.setattr(model, "_evaluate", lambda *at: calls.append(at) or evaluate(*at))
    model.fit(1e-2)
    assert 5 < len(calls) <= model.n_iter + 6


@pytest.mark.parametrize("correlated", [False, True])
def test_biases_are_scaled_as_the_weights_are(correlated):
    """Classes of 1 to 10 times as many images need large biases; with unscaled ones a fit takes 38 to 41 iterations."""
    generator = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.arange(1.0, 11.0), 20000, replacement=True, generator=generator)
    x = torch.randn(20000, 64, generator=generator) + torch.randn(10, 64, generator=generator)[y] / 8
    if correlated:
        x = x @ torch.randn(64, 64, generator=generator)
    scaled = standardiser(x)(x)
    model = Logistic(scaled, y, 10)
    theta = model.fit(1e-2)
    assert model.n_iter <= 25
    start = model.fit(1e-2, start=theta)
    assert loss_of(start, scaled, y, 1e-2).item() == pytest.approx(loss_of(theta, scaled, y, 1e-2).item(), rel=1e-7)


def test_a_warm_start_ends_at_the_same_optimum(digits):
    x, y, _, _ = digits
    scaled = standardiser(x)(x)
    model = Logistic(scaled, y, 10)
    warm, cold = model.fit(1e-2, start=model.fit(1.0)), model.fit(1e-2)
    assert loss_of(warm, scaled, y, 1e-2).item() == pytest.approx(loss_of(cold, scaled, y, 1e-2).item(), rel=1e-4)


def test_equal_features_are_fitted_as_one_and_weigh_the_same(grey):
    x, y, _, _ = grey
    scaled = standardiser(x)(x)
    model = Logistic(scaled, y, 10)
    assert model.z.shape[1] <= 64
    theta = model.fit(1e-2, start=model.fit(1.0))
    assert torch.equal(theta[:64], theta[64:128])
    assert loss_of(theta, scaled, y, 1e-2).item() == pytest.approx(
        loss_of(model.fit(1e-2), scaled, y, 1e-2).item(), rel=1e-4
    )


def test_standardised_features_have_moments_zero_and_one(digits):
    x = digits[0].clone()
    x[:, 0] = 3.0  # constant
    scaled = standardiser(x)(x).double()
    assert scaled.mean(0).abs().max() < 1e-5
    spread = scaled.var(0, correction=0)
    varied = x.var(0) > 1e-3
    assert (spread[varied] - 1).abs().max() < 1e-3
    assert (scaled[:, 0] == 0).all()


def test_whitened_features_have_the_identity_as_covariance(digits):
    x = digits[0]
    white = whitener(x)(x).double()
    assert white.shape[1] < 64  # pixels that never change have no direction
    assert (white.T @ white / len(x) - torch.eye(white.shape[1])).abs().max() < 1e-2
    assert whitener(x, 10)(x).shape == (1200, 10)


@pytest.mark.parametrize("count", [5, 100])  # fewer images than features, and more
@pytest.mark.parametrize("x", [torch.zeros(1, 20), torch.linspace(-3, 7, 20)[None]])
def test_constant_features_become_one_dimension_of_0(x, count):
    x = x.expand(count, -1)
    for fit in (whitener, lambda rows: projector(rows, 4)):
        scaled = fit(x)(x)
        assert scaled.shape[1] >= 1
        assert scaled.abs().max() < 1e-4
    assert (standardiser(whitener(x)(x))(whitener(x)(x))).isfinite().all()


def test_projection_keeps_the_most_variance_there_is(digits):
    from sklearn.decomposition import PCA

    x = digits[0]
    ours = projector(x, 7)(x).var(0, correction=1).sum()
    assert ours.item() == pytest.approx(PCA(7).fit(x).explained_variance_.sum(), rel=1e-4)


def test_fewer_images_than_features_have_the_same_components(wide):
    from sklearn.decomposition import PCA

    x = wide[0].double().numpy()
    reference = PCA(20).fit(x)
    mean, values, vectors = principal(wide[0])
    np.testing.assert_allclose(mean, reference.mean_, atol=1e-6)
    np.testing.assert_allclose(values[:20] * 90 / 89, reference.explained_variance_, rtol=1e-6)
    assert len(values) == 89  # as many as there are differences
    np.testing.assert_allclose(np.abs(vectors[:, :20].T @ reference.components_.T), np.eye(20), atol=1e-4)
    assert (vectors.T @ vectors - torch.eye(89)).abs().max() < 1e-5

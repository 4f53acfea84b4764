"""A linear head on patch tokens, held against scikit-learn and against known masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from linear_probe.dense import DenseHead


def shown(count=40, D=5, grid=(4, 4), seed=0):
    """Return tokens whose first coordinate is larger, up to noise, on the figure, and masks at the tokens' own size."""
    generator = torch.Generator().manual_seed(seed)
    figure = (torch.rand(count, 1, *grid, generator=generator) > 0.6).float()
    tokens = torch.randn(count, grid[0] * grid[1], D, generator=generator) * 3 + 1
    tokens[..., 0] += 4 * figure.flatten(1)
    return tokens, figure


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_where_tokens_are_pixels_it_is_logistic_regression(penalty):
    tokens, masks = shown()
    head = DenseHead(tokens, masks, (4, 4), penalty)
    x, y = tokens.flatten(0, 1).numpy().astype(np.float64), masks.flatten().numpy()
    z = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / (len(y) * penalty), tol=1e-8, max_iter=1000).fit(z, y)
    assert head.weight[:, 0].numpy() == pytest.approx(reference.coef_[0], abs=2e-3)
    assert head(tokens).flatten().numpy() == pytest.approx(reference.predict_proba(z)[:, 1], abs=2e-3)


def test_of_several_classes_it_is_multinomial_regression_on_the_pixels_that_have_one():
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(3, (30, 4, 4), generator=generator)
    tokens = torch.randn(30, 16, 5, generator=generator) + 2 * torch.eye(3, 5)[classes].flatten(1, 2)
    masks = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    has_class = torch.rand(30, 1, 4, 4, generator=generator) > 0.2
    head = DenseHead(tokens, masks * has_class, (4, 4), 1e-2)
    kept = has_class.flatten().numpy()
    x, y = tokens.flatten(0, 1).numpy().astype(np.float64), classes.flatten().numpy()
    z = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / (kept.sum() * 1e-2), tol=1e-8, max_iter=1000).fit(z[kept], y[kept])
    probabilities = head(tokens).movedim(1, -1).flatten(0, 2).numpy()
    assert probabilities == pytest.approx(reference.predict_proba(z), abs=2e-3)


def test_a_figure_of_many_pixels_is_segmented_from_few_tokens():
    tokens, figure = shown(D=3)
    tokens[..., 0] += 40 * figure.flatten(1)
    masks = torch.nn.functional.interpolate(figure, size=(16, 16), mode="bilinear").round()
    probabilities = DenseHead(tokens[:30], masks[:30], (4, 4), 1e-5)(tokens[30:])
    right = (probabilities.round() == masks[30:]).float().mean()
    assert probabilities.shape == (10, 1, 16, 16)
    assert right > 0.95


def test_a_heavy_penalty_leaves_the_share_of_figure():
    tokens, masks = shown()
    probabilities = DenseHead(tokens, masks, (4, 4), penalty=1e4)(tokens)
    assert probabilities.min() == pytest.approx(float(masks.mean()), abs=1e-2)
    assert probabilities.max() == pytest.approx(float(masks.mean()), abs=1e-2)

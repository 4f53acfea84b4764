"""The plain metrics: what they are, and what they ask for."""

from __future__ import annotations

import pytest
import torch

from ldae.objectives.residues import AbsoluteError, SquaredError


def test_errors_are_means_over_the_numbers_of_each_image():
    out, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    out[0, 0, 0, 0], y[1, 2] = 4.8, -2.0  # one of 48 numbers; 16 of 48
    assert AbsoluteError()(out, y).tolist() == pytest.approx([0.1, 2 / 3])
    assert SquaredError()(out, y).tolist() == pytest.approx([0.48, 4 / 3])
    assert torch.equal(AbsoluteError()(y, out), AbsoluteError()(out, y))


@pytest.mark.parametrize(("metric", "best"), [(AbsoluteError(), 0.1), (SquaredError(), 0.42)])
def test_the_absolute_error_asks_for_the_median_the_squared_one_for_the_mean(metric, best):
    y = torch.tensor([0.0, 0.05, 0.1, 0.15, 1.8])[:, None, None, None]
    answers = torch.linspace(-1, 2, 301)
    losses = torch.stack([metric(a.expand_as(y), y).mean() for a in answers])
    assert answers[losses.argmin()].item() == pytest.approx(best, abs=1e-4)

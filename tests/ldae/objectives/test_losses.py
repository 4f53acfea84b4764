"""The plain metrics: what they are, and what they ask for."""

from __future__ import annotations

import pytest
import torch

from ldae.objectives.losses import L1, L2, PCAWeighted
from ldae.tokenizers.patch_linear import PatchPCA


def test_errors_are_means_over_the_numbers_of_each_image():
    out, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    out[0, 0, 0, 0], y[1, 2] = 4.8, -2.0  # one of 48 numbers; 16 of 48
    assert L1()(out, y).tolist() == pytest.approx([0.1, 2 / 3])
    assert L2()(out, y).tolist() == pytest.approx([0.48, 4 / 3])
    assert torch.equal(L1()(y, out), L1()(out, y))


@pytest.mark.parametrize(("metric", "best"), [(L1(), 0.1), (L2(), 0.42)])
def test_the_absolute_error_asks_for_the_median_the_squared_one_for_the_mean(metric, best):
    y = torch.tensor([0.0, 0.05, 0.1, 0.15, 1.8])[:, None, None, None]
    answers = torch.linspace(-1, 2, 301)
    losses = torch.stack([metric(a.expand_as(y), y).mean() for a in answers])
    assert answers[losses.argmin()].item() == pytest.approx(best, abs=1e-4)


class _Image:
    latent = False


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [0, 3, 8, 12])
def test_weights_are_finite_where_patches_have_a_rank_below_d(whiten, rank):
    tokenizer = PatchPCA((3, 4, 4), 2, 8)
    tokenizer.eigenvalues = torch.where(torch.arange(12) < rank, 2.0 ** -torch.arange(12), 0).double()
    w = PCAWeighted(tokenizer, _Image(), 0.1, whiten).weights().flatten()
    assert w[:8].mean() == pytest.approx(1)
    known = min(rank, 8)
    relative = 2.0 ** (whiten * torch.arange(known)) if rank else torch.ones(1)
    expected = torch.cat([relative, relative[-1:].expand(8 - len(relative))])
    assert torch.allclose(w[:8], expected / expected.mean(), rtol=1e-5)
    assert torch.allclose(w[8:], 0.1 * w[7].expand(4))

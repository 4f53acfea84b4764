"""Laws of what is said of features without labels."""

from __future__ import annotations

import math

import pytest
import torch

from linear_probe.geometry import alignment, effective_rank, rank_me, uniformity


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _reference_alignment(x, y, alpha=2):
    """As the paper's appendix prints it, for features on the sphere."""
    return (x - y).norm(p=2, dim=1).pow(alpha).mean()


def _reference_uniformity(x, t=2):
    """As the paper's appendix prints it."""
    return torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()


def test_the_formulas_are_the_papers():
    x, y = (torch.nn.functional.normalize(gaussian(300, 16, seed).double(), dim=1) for seed in (0, 1))
    assert alignment(5 * x, y) == pytest.approx(_reference_alignment(x, y).item(), rel=1e-9)
    assert alignment(x, y, alpha=1) == pytest.approx(_reference_alignment(x, y, 1).item(), rel=1e-9)
    assert uniformity(x, block=37) == pytest.approx(_reference_uniformity(x).item(), rel=1e-9)


def test_views_that_agree_are_aligned_and_opposites_are_as_far_as_can_be():
    x = gaussian(50, 8)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)


def test_a_collapsed_representation_is_not_uniform():
    spread, collapsed = gaussian(2000, 64), gaussian(1, 64).repeat(100, 1)
    assert uniformity(collapsed) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    # independent directions of a sphere in 64 dimensions: d^2 has mean 2 and variance 4/64
    assert uniformity(spread) == pytest.approx(-4 + 2**2 * (4 / 64) / 2, abs=0.02)
    half = torch.cat([spread[:1000], spread[:1].repeat(1000, 1)])
    assert uniformity(spread) < uniformity(half) < uniformity(collapsed)


def test_the_effective_rank_counts_directions():
    basis = torch.linalg.qr(gaussian(40, 40, 1))[0]
    for k in (1, 7, 40):
        x = gaussian(20000, k) @ basis[:k] + 5  # the mean does not count
        assert effective_rank(x) == pytest.approx(k, rel=0.01)
    assert effective_rank(torch.ones(10, 4)) == 0
    uneven = gaussian(20000, 2) * torch.tensor([3.0, 1.0])  # shares 0.9 and 0.1
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_rank(uneven) == pytest.approx(math.exp(entropy), rel=0.02)


def test_rankme_is_its_formula():
    x = gaussian(500, 12) * torch.linspace(0.1, 2, 12) + 1
    values = torch.linalg.svdvals(x.double())
    p = values / values.sum() + 1e-7
    assert rank_me(x) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-6)

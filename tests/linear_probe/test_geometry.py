"""Laws of the label-free measures of features."""

from __future__ import annotations

import math

import pytest
import torch

from linear_probe.geometry import alignment, effective_rank, lidar, linear_cka, rank_me, uniformity


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


def test_lidar_counts_the_directions_between_images_that_the_noise_of_views_leaves():
    n, q, D = 4000, 20, 6
    scales = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0])
    images, noise = gaussian(n, D, 1) * scales, gaussian(n * q, D, 2).reshape(n, q, D)
    # Fisher's eigenvalues: (scale^2 + 1 / q) / (1 - 1 / q), so 3 of 4.05 and 3 of 0.05, times 20 / 19
    p = torch.tensor([4.05, 4.05, 4.05, 0.05, 0.05, 0.05]).double()
    p = p / p.sum()
    assert lidar(images[:, None] + noise) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=0.01)
    # a direction counts by its ratio to the noise, not by its size
    stretch = torch.linspace(0.5, 5, D)
    assert lidar((images[:, None] + noise) * stretch) == pytest.approx(lidar(images[:, None] + noise), rel=0.01)


def test_lidar_is_its_formula():
    views = gaussian(30 * 4, 5).reshape(30, 4, 5).double() * 0.3 + gaussian(30, 5, 1).double()[:, None]
    means = views.mean(1)
    grand = means.mean(0)
    B = sum(torch.outer(m - grand, m - grand) for m in means) / 30
    W = sum(torch.outer(v - m, v - m) for of_image, m in zip(views, means, strict=True) for v in of_image) / 120
    W = W + 1e-4 * torch.eye(5)
    values, vectors = torch.linalg.eigh(W)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ B @ root)
    p = eigenvalues / eigenvalues.sum() + 1e-7
    assert lidar(views) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-9)
    assert lidar(torch.ones(10, 3, 4)) == 0


def test_linear_cka_is_the_normalised_hsic_of_linear_kernels():
    x, y = gaussian(60, 7), gaussian(60, 4, 1)
    y[:, :2] += x[:, :2]
    H = torch.eye(60).double() - 1 / 60
    hsic = lambda a, b: torch.trace(a.double() @ a.double().T @ H @ b.double() @ b.double().T @ H)  # noqa: E731
    assert linear_cka(x, y) == pytest.approx((hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item(), rel=1e-9)


def test_linear_cka_ignores_rotation_scale_and_shift_alone():
    x = gaussian(200, 6)
    rotation = torch.linalg.qr(gaussian(6, 6, 1))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, x * torch.linspace(0.1, 3, 6)) < 0.9
    assert linear_cka(x[:, :3], x[:, 3:]) < 0.1
    assert linear_cka(x, torch.ones(200, 2)) == 0

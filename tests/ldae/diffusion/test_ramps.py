"""Ramps, levels between steps, schedules without noise (arXiv 2006.11239, 2104.07636)."""

from __future__ import annotations

import math

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.schedules import ContinuousGamma, Cosine, DDPMLinear, Quadratic, Steps, ZeroInput


def _reference_alpha_bar(betas):
    product, alpha_bar = 1.0, []
    for beta in betas:
        product *= 1 - beta
        alpha_bar.append(product)
    return alpha_bar


@pytest.mark.parametrize("T", [50, 1000, 4000])
def test_tables_are_their_formulas_to_the_last_digit(T):
    """To 1e-7, from plain numbers."""
    k = 1000 / T
    linear = [k * (1e-4 + (0.02 - 1e-4) * i / (T - 1)) for i in range(T)]
    assert (DDPMLinear(T=T).gamma ** 2).tolist() == pytest.approx(_reference_alpha_bar(linear), rel=1e-7)

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    cosine = [min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)]
    assert (Cosine(T=T).gamma ** 2).tolist() == pytest.approx(_reference_alpha_bar(cosine), rel=1e-7)


def test_the_quadratic_ramp_is_even_in_the_root():
    schedule = Quadratic(T=200)
    root = schedule.beta.sqrt()
    assert schedule.beta[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    torch.testing.assert_close(root.diff(), ((0.02**0.5 - 0.01) / 199) * torch.ones(199).double(), rtol=1e-9, atol=0)
    assert (schedule.gamma**2).tolist() == pytest.approx(_reference_alpha_bar(schedule.beta.tolist()), rel=1e-12)


def test_a_ramp_of_few_steps_takes_its_betas_as_they_are():
    schedule = DDPMLinear(T=5, beta_first=0.1, beta_last=0.5, rescale=False)
    assert schedule.beta.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(DDPMLinear(T=1000, rescale=False).gamma, DDPMLinear(T=1000).gamma)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DDPMLinear(T=5, beta_last=1.0, rescale=False), "beta_last=1.0 must be below 1"),
        (lambda: DDPMLinear(T=5, beta_first=1.5, rescale=False), "beta_first=1.5 must be below 1"),
        (lambda: Quadratic(beta_last=2.0), "beta_last=2.0 must be below 1"),
        (lambda: ContinuousGamma(beta_first=1.0), "beta_first=1.0 must be below 1"),
    ],
)
def test_a_beta_of_one_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_the_public_grid_of_sr3():
    gamma2 = ContinuousGamma().gamma ** 2
    assert gamma2[[0, 1000, 1999]].tolist() == pytest.approx([0.999999, 0.0814, 4.386e-5], rel=1e-3)


@pytest.mark.parametrize("schedule", [ContinuousGamma(), Quadratic(), DDPMLinear(100, 1e-4, 0.1, False)])
def test_chained_single_steps_have_the_closed_form(schedule):
    """sqrt(gamma_t) y0 and 1 - gamma_t, in float64."""
    scale, variance = 1.0, 0.0
    for i, beta in enumerate(schedule.beta.tolist()):
        scale, variance = math.sqrt(1 - beta) * scale, (1 - beta) * variance + beta
        assert scale == pytest.approx(float(schedule.gamma[i]), rel=1e-12)
        assert variance == pytest.approx(float(schedule.sigma[i]) ** 2, rel=1e-9)


def test_levels_between_steps_are_uniform_over_intervals_and_in_each():
    """A million draws; chi-square of their intervals, read from the level."""
    schedule, count = ContinuousGamma(), 1_000_000
    level = schedule.draw(count, BatchGenerator([7, 8]))
    gamma2, sigma2 = level.gamma.double() ** 2, level.sigma.double() ** 2
    torch.testing.assert_close(gamma2 + sigma2, torch.ones(count).double(), rtol=0, atol=1e-6)
    sigma2 = torch.where(gamma2 < 0.5, 1 - gamma2, sigma2)  # of the two float32, the smaller is the finer
    assert sigma2.min() > 0
    assert sigma2.max() <= 1 - 4.38e-5
    ends = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.sigma**2])
    interval = torch.searchsorted(ends, sigma2).clamp(1, 2000) - 1
    assert (interval != level.t).float().mean() < 2e-3  # rounding at the edges
    expected = count / 2000
    chi2 = ((torch.bincount(interval, minlength=2000) - expected) ** 2 / expected).sum().item()
    assert chi2 < 1999 * (1 - 2 / (9 * 1999) + 2.326 * math.sqrt(2 / (9 * 1999))) ** 3  # p = 0.01 (Wilson-Hilferty)
    inside = (sigma2 - ends[level.t]) / (ends[level.t + 1] - ends[level.t])
    assert inside.mean().item() == pytest.approx(0.5, abs=0.002)
    assert inside.var().item() == pytest.approx(1 / 12, rel=0.01)


def test_each_image_of_a_batch_has_its_own_level_and_the_draws_alone_decide():
    schedule = ContinuousGamma()
    level = schedule.draw(64, BatchGenerator([3]))
    assert len(set(level.t.tolist())) > 50
    again = schedule.draw(64, BatchGenerator([3]))
    assert torch.equal(level.t, again.t)
    assert torch.equal(level.gamma, again.gamma)
    grid = schedule.at(torch.tensor([0, 5]))
    assert torch.equal(grid.gamma, schedule.gamma[[0, 5]].float())


def test_schedules_without_noise():
    level = Steps(T=7).draw(500, BatchGenerator([0]))
    assert set(level.t.tolist()) == set(range(7))
    assert (level.gamma == 1).all()
    assert (level.sigma == 0).all()
    zero = ZeroInput().draw(3, BatchGenerator([0]))
    assert (zero.t.tolist(), zero.gamma.tolist(), zero.sigma.tolist()) == ([0] * 3, [0.0] * 3, [0.0] * 3)

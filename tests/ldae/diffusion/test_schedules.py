"""Schedules against their formulas (arXiv 2401.14404, 2006.11239, 2102.09672)."""

from __future__ import annotations

import math

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.schedules import (
    ConstantSigma,
    Cosine,
    DDPMLinear,
    LinearBlend,
    LinearGamma2,
    LinearSigma,
    ZeroInput,
)


def test_ddpm_linear_has_the_published_check_values():
    gamma2 = DDPMLinear().gamma ** 2
    assert gamma2[499].item() == pytest.approx(0.0785872, rel=1e-5)
    assert gamma2[999].item() == pytest.approx(4.03583e-5, rel=1e-5)
    short = DDPMLinear(T=100)
    assert short.beta[[0, -1]].tolist() == pytest.approx([0.001, 0.2])
    assert short.gamma[-1].item() ** 2 == pytest.approx(2.03901e-5, rel=1e-5)


@pytest.mark.parametrize("T", [1, 10, 20])
def test_ddpm_linear_refuses_so_few_steps_that_a_beta_reaches_one(T):
    with pytest.raises(ConfigError, match="T"):
        DDPMLinear(T=T)


def test_cosine_has_the_published_check_values():
    gamma2 = Cosine().gamma ** 2
    assert gamma2[[0, 499, 999]].tolist() == pytest.approx([0.99995872, 0.49384359, 2.4288e-9], rel=1e-4)
    beta = 1 - gamma2[1:] / gamma2[:-1]
    assert int((beta > 0.999 - 1e-9).sum()) == 1  # exactly one is clipped


def test_linear_gamma2_falls_by_equal_steps_from_almost_one_to_zero():
    gamma2 = LinearGamma2(T=1000).gamma ** 2
    assert 0.99 < gamma2[0] < 1
    assert gamma2[-1] == 0
    steps = gamma2[:-1] - gamma2[1:]
    assert torch.allclose(steps, torch.full_like(steps, 1 / 1000), atol=1e-12)


def test_linear_sigma_rises_by_equal_steps_from_zero_to_root_two():
    schedule = LinearSigma(T=1000)
    assert (schedule.gamma == 1).all()
    assert schedule.sigma[0] == 0
    assert schedule.sigma[-1].item() == pytest.approx(math.sqrt(2), abs=1e-12)
    steps = schedule.sigma.diff()
    assert torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-12)


def test_constant_sigma_is_the_papers_single_level():
    schedule = ConstantSigma(T=7)
    assert (schedule.gamma == 1).all()
    assert schedule.sigma.tolist() == [math.sqrt(1 / 3)] * 7


@pytest.mark.parametrize("kind", [DDPMLinear, Cosine, LinearGamma2])
def test_variance_is_preserved(kind):
    schedule = kind()
    assert torch.allclose(schedule.gamma**2 + schedule.sigma**2, torch.ones(1000, dtype=torch.float64), atol=1e-12)


def test_draws_are_uniform_over_all_steps_and_levels_are_those_of_the_table():
    schedule = LinearSigma(T=10)
    level = schedule.draw(100_000, BatchGenerator([3]))
    share = torch.bincount(level.t, minlength=10) / 1e5
    assert (share - 0.1).abs().max() < 0.005
    assert torch.equal(level.sigma, schedule.sigma[level.t].float())
    assert level.sigma.dtype == torch.float32


@pytest.mark.parametrize("schedule", [Cosine(T=50), LinearSigma(T=50), ZeroInput()], ids=lambda s: type(s).__name__)
def test_a_plot_has_gamma_sigma_and_the_signal_share_over_t(schedule, tmp_path):
    figure = schedule.plot(tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").stat().st_size > 1000
    gamma, sigma, share = (torch.tensor(line.get_ydata()) for line in figure.axes[0].get_lines())
    assert torch.equal(gamma, schedule.gamma)
    assert torch.equal(sigma, schedule.sigma)
    assert torch.equal(share.nan_to_num(), (gamma**2 / (gamma**2 + sigma**2)).nan_to_num())
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == list(range(schedule.T))


def test_linear_blend_fades_one_image_into_the_other_by_equal_steps():
    schedule = LinearBlend(T=8)
    t = torch.arange(1, 9, dtype=torch.float64)  # t of the paper, from 1
    assert torch.equal(schedule.gamma, (8 - t) / 8)
    assert torch.equal(schedule.sigma, t / 8)

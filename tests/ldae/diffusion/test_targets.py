"""Targets, weights, corruption: the identities between them (arXiv 2006.11239, 2202.00512)."""

from __future__ import annotations

import pytest
import torch

from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.gaussian import Gaussian
from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearGamma2, LinearSigma, ZeroInput
from ldae.diffusion.targets import X0, Eps, V, usable_steps
from ldae.diffusion.weights import SNR, Gamma2, InverseVariance, MinSNR, One

SCHEDULES = [Cosine(), LinearGamma2(), LinearSigma()]


def corrupted(schedule, t):
    x0 = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level = schedule.at(torch.full((4,), t))
    state = Gaussian().draw(x0, BatchGenerator([2]))
    return x0, level, state, Gaussian().at(x0, level, state)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("t", [1, 500, 900])
def test_to_x0_undoes_of(schedule, target, t):
    x0, level, state, x_t = corrupted(schedule, t)
    back = target.to_x0(target.of(x0, state, level), x_t, level)
    assert torch.allclose(back, x0, atol=1e-4 / float(level.gamma[0]))


def test_v_is_the_velocity_of_the_spec():
    x0, level, state, x_t = corrupted(Cosine(), 400)
    gamma, sigma = level.gamma[0], level.sigma[0]
    v = V().of(x0, state, level)
    assert torch.allclose(v, gamma * state.eps - sigma * x0)
    assert torch.allclose(sigma * x_t + gamma * v, state.eps, atol=1e-5)  # eps = b x_t + a v


@pytest.mark.parametrize("t", [100, 500, 900])
def test_one_error_expressed_in_three_targets(t):
    """||d eps||^2 = SNR ||d x0||^2 and ||d v||^2 = (1 + SNR) ||d x0||^2."""
    x0, level, _, x_t = corrupted(Cosine(), t)
    snr = SNR()(level)[0]
    wrong = {}
    for name, target in (("eps", Eps()), ("v", V())):
        out = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
        nudged = out + 0.1
        in_x0 = target.to_x0(nudged, x_t, level) - target.to_x0(out, x_t, level)
        wrong[name] = ((nudged - out) ** 2).sum() / (in_x0**2).sum()
    assert wrong["eps"] == pytest.approx(float(snr), rel=1e-3)
    assert wrong["v"] == pytest.approx(float(1 + snr), rel=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda t: type(t).__name__)
def test_a_target_knows_how_it_magnifies_an_error_in_x0(schedule, target):
    _, level, _, x_t = corrupted(schedule, 700)
    in_x0 = target.to_x0(torch.full_like(x_t, 0.1), x_t, level) - target.to_x0(torch.zeros_like(x_t), x_t, level)
    torch.testing.assert_close(0.01 / (in_x0**2).mean((1, 2, 3)), target.error_scale(level), rtol=1e-3, atol=0)


def test_eps_cannot_tell_x0_where_nothing_of_it_is_left():
    _, level, state, x_t = corrupted(LinearGamma2(T=10), 9)
    assert level.gamma[0] == 0
    with pytest.raises(ZeroDivisionError, match="gamma = 0"):
        Eps().to_x0(state.eps, x_t, level)


def test_weights_are_their_formulas():
    level = LinearSigma(T=3).at(torch.tensor([0, 1, 2]))  # sigma 0, sqrt(1/2), sqrt(2)
    assert One()(level).tolist() == [1, 1, 1]
    assert Gamma2()(level).tolist() == [1, 1, 1]
    assert InverseVariance()(level).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert SNR()(level)[0] == torch.inf
    assert SNR()(level)[1:].tolist() == pytest.approx([2, 0.5])


def test_min_snr_caps_the_weight_of_an_error_in_x0_whatever_the_target():
    level = DDPMLinear().at(torch.tensor([0, 200, 400, 999]))
    snr = SNR()(level)
    assert (snr > 5).tolist() == [True, False, False, False]
    for target in (X0(), Eps(), V()):
        costs = MinSNR(target)(level) * target.error_scale(level)
        torch.testing.assert_close(costs, snr.clamp(max=5))
    torch.testing.assert_close(MinSNR(Eps())(level), (5 / snr).clamp(max=1))
    torch.testing.assert_close(MinSNR(V())(level), snr.clamp(max=5) / (snr + 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(
    "weight", [One(), Gamma2(), InverseVariance(), MinSNR], ids=["1", "gamma2", "1/var", "min_snr"]
)
def test_weights_are_finite_wherever_there_is_noise(weight, target):
    """MinSNR with eps is 0 / 0 at gamma = 0, where its limit is 1; errors there are in the noise alone."""
    weight = weight(target) if weight is MinSNR else weight
    for schedule in (LinearGamma2(T=10), DDPMLinear(), LinearSigma()):
        level = schedule.at(torch.arange(1, schedule.T))
        assert torch.isfinite(weight(level)).all()
    assert MinSNR(Eps())(LinearGamma2(T=10).at(torch.tensor([9]))).item() == pytest.approx(1)


def test_no_target_but_x0_is_recovered_where_neither_signal_nor_noise_is():
    assert [usable_steps(ZeroInput(), target) for target in (X0(), Eps(), V())] == [1, 0, 0]


def test_gaussian_noise_has_the_levels_moments():
    level = LinearGamma2(T=10).at(torch.tensor([4]))
    x0 = torch.full((1, 1, 400, 400), 2.0)
    state = Gaussian().draw(x0, BatchGenerator([0]))
    x_t = Gaussian().at(x0, level, state)
    assert x_t.mean().item() == pytest.approx(2 * 0.5**0.5, abs=0.01)
    assert x_t.std().item() == pytest.approx(0.5**0.5, abs=0.01)


def test_draws_of_a_slice_do_not_depend_on_who_works_on_it():
    whole = BatchGenerator([5, 6, 7, 8])
    halves = [BatchGenerator([5, 6]), BatchGenerator([7, 8])]
    t, eps = whole.integers(1000, 12), whole.normal((12, 2, 3))
    parts = [(d.integers(1000, 6), d.normal((6, 2, 3))) for d in halves]
    assert torch.equal(t, torch.cat([p[0] for p in parts]))
    assert torch.equal(eps, torch.cat([p[1] for p in parts]))
    with pytest.raises(ValueError, match="equal slices"):
        whole.normal((6, 1))

"""Likelihood: the bound's terms, their sum, levels drawn by their size (arXiv 2006.11239, 2102.09672)."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import Normal, NormalWithTrueVariance

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.bound import nll_bound, prior_bound, reverse_steps, step_bound
from ldae.diffusion.samplers import FixedLargeVariance, FixedSmallVariance, LearnedVariance
from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearSigma, Steps
from ldae.diffusion.spacing import All, Linear, Stride
from ldae.diffusion.targets import X0, Eps
from ldae.diffusion.timesteps import LossAware
from ldae.diffusion.trajectory import CLEAN, Prediction, SamplingStep, build_trajectory
from ldae.diffusion.variance import LearnedRange


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FULL = build_trajectory(DDPMLinear(), All().steps(1000))


def at(t, trajectory=FULL):
    """Return the sampling step at t and the reverse step from it."""
    (k,) = (k for k, step in enumerate(trajectory) if step.t == t)
    return trajectory[k], reverse_steps(trajectory)[k]


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_a_term_is_a_weighted_error_in_eps_and_in_x0(t):
    """beta^2 / (2 sigma^2 alpha (1 - a)) in eps; half of the fall of the signal-to-noise ratio in x0."""
    (now, back), (then, _) = at(t), at(t - 1)
    x0, eps = normal(1, 64, 3).double(), normal(2, 64, 3).double()
    guess = eps + 0.3 * normal(3, 64, 3)
    x = now.mixed(x0, eps)
    prediction = Prediction((x - now.sigma * guess) / now.gamma)
    bits = step_bound(prediction, FixedSmallVariance(), x0, x, back)
    weight = back.beta**2 / (2 * back.beta_tilde * (1 - back.beta) * now.sigma**2)
    in_eps = weight * (eps - guess).square().mean(1) / math.log(2)
    torch.testing.assert_close(bits, in_eps, rtol=1e-5, atol=0)
    snr = [(step.gamma / step.sigma) ** 2 for step in (then, now)]
    in_x0 = 0.5 * (snr[0] - snr[1]) * (x0 - prediction.x0).square().mean(1) / math.log(2)
    torch.testing.assert_close(bits, in_x0, rtol=1e-5, atol=0)
    if t == 500:
        assert (weight, 0.5 * (snr[0] - snr[1])) == (
            pytest.approx(0.005514462, rel=1e-6),
            pytest.approx(0.000465198, rel=1e-5),
        )


@pytest.mark.parametrize("t", [1, 500])
def test_the_large_variance_costs_a_constant_more(t):
    """The mean's part with sigma^2 = beta, and (ln(beta / beta_tilde) + beta_tilde / beta - 1) / 2."""
    now, back = at(t)
    x0, eps = normal(1, 64, 3).double(), normal(2, 64, 3).double()
    x, ratio = now.mixed(x0, eps), back.beta_tilde / back.beta
    exact = step_bound(Prediction(x0), FixedLargeVariance(), x0, x, back)
    expected = 0.5 * (-math.log(ratio) + ratio - 1) / math.log(2)
    torch.testing.assert_close(exact, torch.full_like(exact, expected), rtol=1e-6, atol=1e-12)
    assert (step_bound(Prediction(x0), FixedSmallVariance(), x0, x, back) == 0).all()
    wrong = Prediction(x0 + 0.1)
    parts = [
        step_bound(wrong, rule, x0, x, back) - step_bound(Prediction(x0), rule, x0, x, back)
        for rule in (FixedLargeVariance(), FixedSmallVariance())
    ]
    torch.testing.assert_close(parts[0], ratio * parts[1], rtol=1e-6, atol=0)


def test_what_the_noisiest_stage_keeps_is_the_published_number():
    """At most 2.911e-5 bits, for |x0| = 1."""
    assert prior_bound(torch.ones(1, 4).double(), FULL[0]).item() == pytest.approx(2.911e-5, rel=1e-3)
    step = SamplingStep(0, 0.0, 1.0)
    assert prior_bound(normal(1, 2, 4), step).tolist() == [0, 0]
    wide = build_trajectory(LinearSigma(sigma_max=3.0), torch.tensor([999]))[0]  # from N(0, 1 + 9)
    expected = 0.5 * (math.log(10 / 9) - 1 + 0.9 + 0.25 / 10) / math.log(2)
    assert prior_bound(torch.full((1, 4), 0.5), wide).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("T", [1000, 100])
def test_terms_are_those_that_a_learned_variance_is_trained_with(T):
    """Over all steps, the final one too; of one t, T / 1000 of it."""
    schedule = DDPMLinear(T=T)
    variance, trajectory = LearnedRange(schedule, Eps()), build_trajectory(schedule, All().steps(T))
    for t in (0, 1, 2, T // 2, T - 1):
        now, back = at(t, trajectory)
        x0, eps = normal(1, 4, 3, 8, 8).clamp(-1, 1), normal(2, 4, 3, 8, 8)
        x, out = now.mixed(x0, eps), torch.cat([eps + 0.5 * normal(3, 4, 3, 8, 8), normal(4, 4, 3, 8, 8)], 1)
        prediction = Prediction(Eps().to_x0(variance.prediction(out), x, now.level(x)), variance.interpolation(out))
        trained = variance.bound(out, x0, x, now.level(x))
        torch.testing.assert_close(
            trained, T / 1000 * step_bound(prediction, LearnedVariance(), x0, x, back), rtol=1e-3, atol=1e-6
        )


def test_shares_run_from_the_narrowest_to_the_widest():
    variance, out = LearnedRange(DDPMLinear(), X0()), normal(1, 2, 3, 4, 4)
    answer = torch.cat([out, torch.full_like(out, -1.0)], 1)
    assert (variance.interpolation(answer) == 0).all()
    assert (variance.interpolation(-answer) == 1).all()


FIFTY = build_trajectory(DDPMLinear(), Linear(50).steps(1000))


@pytest.mark.parametrize("trajectory", [FULL, FIFTY], ids=["all", "50"])
def test_the_last_steps_variance_is_that_of_the_one_before(trajectory):
    """ln beta_tilde has entry 0 replaced by entry 1, for the large variance as well."""
    *_, before, last = reverse_steps(trajectory)
    prediction = Prediction(torch.zeros(1), torch.full((1,), 0.25))
    assert last.final
    assert last.beta == pytest.approx(1 - trajectory[-2].gamma ** 2)
    assert FixedSmallVariance().log_variance(prediction, last) == FixedSmallVariance().log_variance(prediction, before)
    assert FixedLargeVariance().log_variance(prediction, last) == FixedSmallVariance().log_variance(prediction, before)
    mixed = 0.25 * math.log(last.beta) + 0.75 * math.log(before.beta_tilde)
    assert LearnedVariance().log_variance(prediction, last).item() == pytest.approx(mixed, rel=1e-6)


def levels(x):
    """The nearest of the 256 levels."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def excess(rule, data, trajectory):
    """Return the bits that a rule's variance v costs where w is true: (ln(v / w) + w / v - 1) / 2 of each step."""
    nats = 0.0
    for now, back in list(zip(trajectory[:-1], reverse_steps(trajectory), strict=True))[:-1]:
        w = back.beta_tilde + back.clean**2 * data.left(now)
        v = math.exp(rule.log_variance(Prediction(torch.zeros(1)), back))
        nats += 0.5 * (math.log(v / w) + w / v - 1)
    return nats / math.log(2)


def test_the_bound_of_normal_data_is_its_entropy_where_prediction_and_variance_are_true():
    """s = 0.3 and levels of 1 / 127.5; the fixed variances cost the bits that the divergences give."""
    data, x0 = Normal(0.3), levels(0.3 * normal(1, 15_000, 1))
    truth = 0.5 * math.log2(2 * math.pi * math.e * 0.3**2) + math.log2(127.5)
    best = nll_bound(NormalWithTrueVariance(data, FULL), LearnedVariance(), x0, FULL, BatchGenerator([2]))
    assert best.steps.shape == (1000, 15_000)
    torch.testing.assert_close(best.total, best.prior + best.steps.sum(0))
    assert best.total.mean().item() == pytest.approx(truth, abs=0.02)
    for rule in (FixedSmallVariance(), FixedLargeVariance()):
        bound = nll_bound(data, rule, x0, FULL, BatchGenerator([2]))
        lost = (bound.steps - best.steps).mean(1)
        assert lost[:-1].sum().item() == pytest.approx(excess(rule, data, FULL), abs=0.01)
        assert lost[-1] > 0.05


def test_the_bound_clips_the_prediction():
    """A prediction that is off by far outside of [-1, 1] costs nothing at white."""
    x0, trajectory = torch.ones(4, 8), build_trajectory(Cosine(), Stride([20]).steps(1000))
    outside = lambda x, step: Prediction(x0 + 5)  # noqa: E731
    clipped = nll_bound(outside, FixedSmallVariance(), x0, trajectory, BatchGenerator([0]))
    assert torch.equal(
        clipped.steps,
        nll_bound(lambda x, step: Prediction(x0), FixedSmallVariance(), x0, trajectory, BatchGenerator([0])).steps,
    )
    assert (
        nll_bound(outside, FixedSmallVariance(), x0, trajectory, BatchGenerator([0]), clip=False).total.min()
        > 10 * clipped.total.max()
    )


def test_a_likelihood_needs_noise_at_every_step_and_two_of_them():
    predict, x0 = (lambda x, step: Prediction(x)), torch.zeros(1, 2)
    with pytest.raises(ConfigError, match=r"spacing.count=1 is too few for a likelihood"):
        nll_bound(predict, FixedSmallVariance(), x0, [FULL[0], CLEAN], BatchGenerator([0]))
    with pytest.raises(ConfigError, match="t=0 is reached without noise, but a likelihood needs some"):
        nll_bound(
            predict, FixedSmallVariance(), x0, build_trajectory(LinearSigma(), All().steps(1000)), BatchGenerator([0])
        )


# --- importance sampling of t


def filled(T=6):
    """Return a history of losses that differ by orders of magnitude, (T, 10), and a sampler that recorded them."""
    losses = 10.0 ** -torch.arange(T)[:, None] * (1 + 0.3 * normal(1, T, 10).abs())
    aware = LossAware(Steps(T))
    for column in losses.T:
        aware.record(torch.arange(T), column)
    return aware, losses.double()


def drawn(aware, count, rng):
    """Steps and the factors of their losses."""
    level, factors = aware.draw(Steps(aware.T), count, rng)
    return level.t, factors


def test_levels_are_drawn_alike_until_every_one_has_its_history():
    aware = LossAware(Steps(3))
    for _ in range(9):
        aware.record(torch.tensor([0, 1, 2, 2, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert aware.counts.tolist() == [9, 9, 10]
    assert aware.probabilities().tolist() == pytest.approx([1 / 3] * 3)
    aware.record(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert aware.probabilities()[0] < 0.2


def test_probabilities_are_the_roots_of_mean_squares_mixed_with_a_thousandth():
    aware, losses = filled()
    size = (losses**2).mean(1).sqrt()
    torch.testing.assert_close(aware.probabilities(), 0.999 * size / size.sum() + 0.001 / 6, rtol=1e-6, atol=0)
    assert aware.probabilities().sum().item() == pytest.approx(1)


def test_the_oldest_losses_give_way():
    aware, _ = filled()
    for value in range(1, 13):
        aware.record(torch.tensor([4]), torch.tensor([float(value)]))
    assert aware.losses[4].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_draws_have_the_probabilities_and_weights_undo_them():
    """The weighted mean is that over uniform t, with less spread than uniform draws have."""
    aware, losses = filled()
    t, weights = drawn(aware, 200_000, BatchGenerator([3, 4]))
    p = aware.probabilities()
    expected = 200_000 * p
    chi2 = ((torch.bincount(t, minlength=6) - expected) ** 2 / expected).sum()
    assert chi2 < 15.09  # p = 0.01 at five degrees of freedom
    torch.testing.assert_close(weights, (1 / (6 * p[t])).float())
    mean = losses.mean(1)
    assert (weights * mean[t]).mean().item() == pytest.approx(mean.mean().item(), rel=0.01)
    uniform = mean[torch.randint(6, (200_000,), generator=torch.Generator().manual_seed(5))]
    assert (weights * mean[t]).std() < 0.2 * uniform.std()


def test_what_was_recorded_is_saved_with_a_checkpoint():
    aware, _ = filled()
    other = LossAware(Steps(6))
    other.load_state_dict(aware.state_dict())
    assert torch.equal(drawn(other, 50, BatchGenerator([1]))[0], drawn(aware, 50, BatchGenerator([1]))[0])
    assert set(aware.state_dict()) == {"losses", "counts"}


def test_the_bound_alone_reaches_the_prediction_and_counts_a_thousandfold():
    """L_vlb: beside L_hybrid's term, whose gradient of the prediction is exactly 0."""
    schedule = DDPMLinear(200)
    x0, eps, level = normal(1, 8, 3, 4, 4).clamp(-1, 1), normal(2, 8, 3, 4, 4), schedule.at(torch.arange(0, 200, 25))
    x_t = level.gamma.reshape(-1, 1, 1, 1) * x0 + level.sigma.reshape(-1, 1, 1, 1) * eps
    terms, gradients = [], []
    for alone in (False, True):
        out = normal(3, 8, 6, 4, 4).requires_grad_()
        step_bound = LearnedRange(schedule, Eps(), alone).bound(out, x0, x_t, level)
        step_bound.sum().backward()
        terms.append(step_bound.detach())
        gradients.append(out.grad[:, :3])
    torch.testing.assert_close(terms[1], 1000 * terms[0])
    assert not gradients[0].any()
    assert (gradients[1].flatten(1).abs().sum(1) > 0).all()

"""Sampling by degrading again (Alg. 1 and 2, arXiv 2208.09392)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, expand
from ldae.diffusion.corruptions.base import Corruption, Mixed, State
from ldae.diffusion.corruptions.gaussian import Gaussian
from ldae.diffusion.samplers import DDIM, Degradation, Direct, ImprovedColdSampling, NaiveColdSampling, sample
from ldae.diffusion.schedules import Cosine, LinearBlend, Steps
from ldae.diffusion.spacing import All, Linear
from ldae.diffusion.trajectory import CLEAN, Prediction, build_trajectory

T = 20
TRAJECTORY = build_trajectory(Steps(T), All().steps(T))


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def always(x0):
    return lambda x, step: Prediction(x0)


class Fading(Corruption):
    """Fade of x0 to its mean by equal steps: linear in x0, a function of t alone."""

    def draw(self, x0, rng):
        return State()

    def at(self, x0, level, state):
        share = expand((level.t + 1) / T, x0)
        return (1 - share) * x0 + share * x0.mean(-1, keepdim=True)


def test_what_is_added_by_steps_is_taken_off_whatever_the_network_says():
    """D(x, s) = x + s e, and predictions that are noise."""
    x0, e = normal(1, 3, 8), 0.1 * normal(2, 3, 8)
    rule = ImprovedColdSampling().bind(lambda x, step: x + (step.t + 1) * e)
    for trajectory in (TRAJECTORY, build_trajectory(Steps(T), Linear(4).steps(T))):
        seen = []
        noise = lambda x, step: Prediction(normal(step.t, 3, 8))  # noqa: E731
        x_T = x0 + (trajectory[0].t + 1) * e
        end = sample(
            noise,
            rule,
            x_T,
            trajectory,
            BatchGenerator([0]),
            callback=lambda i, s, x, _, seen=seen: seen.append((s.t, x)),
        )
        torch.testing.assert_close(end, x0, rtol=0, atol=1e-12)
        for t, x in seen:
            torch.testing.assert_close(x, x0 + (t + 1) * e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", [T, 5, 1])
def test_a_constant_error_ends_as_the_last_degradation_leaves_it_out(kept):
    """D(x, s) = A_s x, x0 predicted with an error d: x ends (I - A_T) d off, however many steps."""
    families = [torch.eye(8, dtype=torch.float64), *(normal(s, 8, 8) / 4 for s in range(T))]
    x0, d = normal(30, 3, 8), 0.3 * normal(31, 3, 8)
    trajectory = [*TRAJECTORY[:: T // kept][:kept], CLEAN]
    rule = ImprovedColdSampling().bind(lambda x, step: x @ families[step.t + 1].T)
    end = sample(always(x0 + d), rule, x0 @ families[T].T, trajectory, BatchGenerator([0]))
    torch.testing.assert_close(end - x0, d - d @ families[T].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("corruption", [Fading(), Gaussian()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("rule", [NaiveColdSampling(), ImprovedColdSampling()], ids=lambda r: type(r).__name__)
def test_a_perfect_network_restores_exactly(rule, corruption):
    """Every x on the way is D(x0, s) too, because random numbers are drawn once."""
    schedule = Steps(T) if isinstance(corruption, Fading) else Cosine(T)
    trajectory, x0, seen = build_trajectory(schedule, All().steps(T)), normal(1, 3, 8).float(), []
    degrade = Degradation(corruption, corruption.draw(x0, BatchGenerator([4])))
    assert torch.equal(degrade(x0, CLEAN), x0)
    callback = lambda i, s, x, _: seen.append((s, x))  # noqa: E731
    end = sample(
        always(x0), rule.bind(degrade), degrade(x0, trajectory[0]), trajectory, BatchGenerator([0]), callback=callback
    )
    torch.testing.assert_close(end, x0, rtol=0, atol=1e-5)
    for step, x in seen:
        torch.testing.assert_close(x, degrade(x0, step), rtol=0, atol=1e-5)


def test_a_term_added_to_the_degradation_is_kept_or_dropped():
    """Algorithm 2 carries it to the end unchanged, algorithm 1 drops it."""
    x0 = normal(1, 3, 8)
    degrade, extra = Degradation(Fading(), State()), 0.002 * normal(2, 3, 8)
    ends = [
        sample(always(x0), rule.bind(degrade), degrade(x0, TRAJECTORY[0]) + extra, TRAJECTORY, BatchGenerator([0]))
        for rule in (ImprovedColdSampling(), NaiveColdSampling())
    ]
    torch.testing.assert_close(ends[0], x0 + extra, rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[1], x0, rtol=0, atol=1e-6)


def test_both_algorithms_are_one_where_the_prediction_degrades_to_x():
    """D(x0, s) = x at every s."""
    x0, degrade = normal(1, 3, 8), Degradation(Fading(), State())
    for now, then in pairwise(TRAJECTORY):
        x = degrade(x0, now)
        first, second = (
            rule.bind(degrade)(x, Prediction(x0), now, then, BatchGenerator([0]))
            for rule in (NaiveColdSampling(), ImprovedColdSampling())
        )
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def estimated(x, x0, step, forgetful=False):
    """Return the z of the paper's second sampler; without x (`forgetful`) it is no estimate of noise."""
    return ((0 if forgetful else x) - step.gamma * x0) / step.sigma


def test_estimated_noise_is_ddim():
    """Algorithms 2 and 1 with z estimated from x are DDIM with eta = 0."""
    trajectory, x, x0 = build_trajectory(Cosine(200), Linear(20).steps(200)), normal(1, 3, 8), normal(2, 3, 8)
    for now, then in pairwise(trajectory):
        expected = DDIM()(x, Prediction(x0), now, then, BatchGenerator([0]))
        for rule in (ImprovedColdSampling(), NaiveColdSampling()):
            result, wrong = (
                rule.bind(lambda y, step, z=z: step.mixed(y, z))(x, Prediction(x0), now, then, BatchGenerator([0]))
                for z in (estimated(x, x0, now), estimated(x, x0, now, forgetful=True))
            )
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
            if then != CLEAN:
                assert (wrong - expected).abs().max() > 0.01


def test_fixed_noise_restores_what_it_degraded_and_says_how_far_from_it_pure_noise_is():
    """From z itself, -sqrt(a_T) x0 + (1 - sqrt(1 - a_T)) z is left: 2.5e-4 of them at cosine, T = 200."""
    trajectory, x0 = build_trajectory(Cosine(200), All().steps(200)), normal(1, 3, 8)
    state = Gaussian().draw(x0, BatchGenerator([4]))
    degrade = lambda x, step: step.mixed(x, state.eps.double())  # noqa: E731
    rule, z = ImprovedColdSampling().bind(degrade), state.eps.double()
    end = sample(always(x0), rule, degrade(x0, trajectory[0]), trajectory, BatchGenerator([0]))
    torch.testing.assert_close(end, x0, rtol=0, atol=1e-5)
    from_noise = sample(always(x0), rule, z, trajectory, BatchGenerator([0]))
    left = -trajectory[0].gamma * x0 + (1 - trajectory[0].sigma) * z
    torch.testing.assert_close(from_noise - x0, left, rtol=0, atol=1e-10)
    assert 1e-5 < left.abs().max() < 1e-3


def test_direct_asks_the_network_once():
    requested = []

    def predict(x, step):
        requested.append(step)
        return Prediction(2 * x)

    x = normal(1, 3)
    assert torch.equal(sample(predict, Direct(), x, TRAJECTORY, BatchGenerator([0])), 2 * x)
    assert requested == [TRAJECTORY[0]]
    assert torch.equal(sample(predict, Direct(), x, [CLEAN], BatchGenerator([0])), x)


def test_a_cold_rule_must_be_told_how_to_degrade_and_binding_leaves_the_part_as_it_was():
    part = ImprovedColdSampling()
    bound = part.bind(Degradation(Fading(), State()))
    assert isinstance(bound, ImprovedColdSampling)
    assert torch.isfinite(
        sample(always(normal(1, 2, 3)), bound, normal(2, 2, 3), TRAJECTORY, BatchGenerator([0]))
    ).all()
    with pytest.raises(ConfigError, match=r"bind it: rule.bind\(Degradation\(corruption, state\)\)"):
        sample(always(normal(1, 2, 3)), part, normal(2, 2, 3), TRAJECTORY, BatchGenerator([0]))
    assert DDIM().bind(Degradation(Fading(), State())).eta == 0


@pytest.mark.parametrize("rule", [ImprovedColdSampling, NaiveColdSampling])
@pytest.mark.parametrize("steps", [5, 20])
def test_a_linear_blend_that_begins_at_the_other_image_ends_at_the_image_of_a_perfect_network(rule, steps):
    """gamma is 0 at T: nothing of x0 is in x_T, which differs from the cosine of the published code."""
    schedule, x0, y = LinearBlend(T), normal(1, 3, 8), normal(2, 3, 8)
    trajectory = build_trajectory(schedule, All().steps(T)[:: T // steps])
    bound = rule().bind(Degradation(Gaussian(), Mixed(eps=y)))
    end = sample(always(x0), bound, y, trajectory, BatchGenerator([0]))
    torch.testing.assert_close(end, x0, rtol=0, atol=1e-6)

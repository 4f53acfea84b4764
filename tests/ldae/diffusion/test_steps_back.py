"""One step back between any two stages (Eq. 6 and 7, arXiv 2006.11239)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ldae.core.types import BatchGenerator
from ldae.diffusion.posterior import Posterior, StepBack
from ldae.diffusion.samplers import DDIM, FixedLargeVariance, FixedSmallVariance, LearnedVariance, initial_noise, sample
from ldae.diffusion.schedules import ConstantSigma, Cosine, DDPMLinear, LinearGamma2, LinearSigma, ZeroInput
from ldae.diffusion.spacing import All, Linear, Quadratic, Stride, Trailing
from ldae.diffusion.targets import V
from ldae.diffusion.trajectory import CLEAN, Prediction, SamplingStep, build_trajectory

PRESERVING = [DDPMLinear(), Cosine(), LinearGamma2(), DDPMLinear(T=50)]
KINDS = [*PRESERVING, LinearSigma(), LinearSigma(T=100, sigma_max=3.0)]
SPACINGS = [All(), Linear(20), Quadratic(20), Stride([5, 10]), Trailing(7)]


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(schedule, spacing):
    trajectory = build_trajectory(schedule, spacing.steps(schedule.T))
    return list(pairwise(trajectory))


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: f"{type(s).__name__}{s.T}")
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_back_leads_to_the_lower_marginal(schedule, spacing, eta):
    """For every schedule, variance preserving or not, every stride and every eta."""
    for now, then in pairs(schedule, spacing):
        back = StepBack.between(now, then, eta)
        assert back.clean + back.noisy * now.gamma == pytest.approx(then.gamma, abs=1e-12)
        drawn = (eta**2) * back.beta_tilde
        assert (back.noisy * now.sigma) ** 2 + drawn == pytest.approx(then.sigma**2, abs=1e-12)


@pytest.mark.parametrize("schedule", PRESERVING, ids=lambda s: f"{type(s).__name__}{s.T}")
def test_steps_of_the_schedule_are_its_posterior(schedule):
    q = Posterior(schedule)
    backs = [StepBack.between(now, then) for now, then in pairs(schedule, All())][::-1]
    for name in ("clean", "noisy", "beta", "beta_tilde"):
        coefficients = torch.tensor([getattr(back, name) for back in backs], dtype=torch.float64)
        torch.testing.assert_close(coefficients, getattr(q, name), rtol=1e-8, atol=1e-12)
    assert (backs[0].clean, backs[0].noisy, backs[0].beta_tilde) == (1, 0, 0)


@pytest.mark.parametrize("schedule", PRESERVING, ids=lambda s: f"{type(s).__name__}{s.T}")
def test_noise_composed_step_by_step_is_the_closed_form(schedule):
    """1 - alpha_bar from single steps, and alpha_bar of the kept steps from the betas between."""
    for spacing in (All(), Linear(10), Quadratic(10)):
        kept = build_trajectory(schedule, spacing.steps(schedule.T))[::-1]
        product, variance = 1.0, 0.0
        for then, now in pairwise(kept):
            beta = StepBack.between(now, then).beta
            product *= 1 - beta
            variance = (1 - beta) * variance + beta
            assert variance == pytest.approx(now.sigma**2, rel=1e-12)
            assert product == pytest.approx(now.gamma**2, rel=1e-12, abs=1e-14)


def test_keeping_all_steps_gives_the_betas_back():
    schedule = DDPMLinear()
    betas = [StepBack.between(now, then).beta for now, then in pairs(schedule, All())][::-1]
    assert betas == pytest.approx(schedule.beta.tolist(), rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: type(s).__name__)
def test_three_forms_of_the_mean_agree(spacing):
    """From x0; from eps, (x - beta / sqrt(1 - a) eps) / sqrt(alpha); along DDIM's direction."""
    x0, eps = normal(1, 64), normal(2, 64)
    for now, then in pairs(DDPMLinear(), spacing):
        x, back = now.mixed(x0, eps), StepBack.between(now, then)
        mean = back.mean(x0, x)
        alpha = (now.gamma / then.gamma) ** 2
        from_eps = (x - (1 - alpha) / now.sigma * eps) / math.sqrt(alpha)
        direction = then.gamma * x0 + math.sqrt(max(then.sigma**2 - back.beta_tilde, 0)) * eps
        torch.testing.assert_close(from_eps, mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(direction, mean, rtol=0, atol=1e-6)


def test_the_mean_tells_x0():
    """A prediction of the mean itself determines x0 = (mean - noisy x) / clean."""
    x0, eps = normal(1, 64), normal(2, 64)
    for now, then in pairs(DDPMLinear(), Linear(50)):
        back, x = StepBack.between(now, then), now.mixed(x0, eps)
        torch.testing.assert_close((back.mean(x0, x) - back.noisy * x) / back.clean, x0, rtol=0, atol=1e-5)


def test_equal_stages_are_one():
    """A pair of equal steps, or a schedule of one level, changes nothing, whatever the rule."""
    x, prediction = normal(1, 8), Prediction(normal(2, 8), torch.zeros(8))
    for step in (
        build_trajectory(DDPMLinear(), torch.tensor([300]))[0],
        build_trajectory(ConstantSigma(), torch.tensor([3]))[0],
    ):
        for rule in (FixedSmallVariance(), FixedLargeVariance(), LearnedVariance(), DDIM(), DDIM(0.5), DDIM(1.0)):
            torch.testing.assert_close(rule(x, prediction, step, step, BatchGenerator([0])), x)


def test_stages_that_grow_noisier_are_refused():
    up = build_trajectory(DDPMLinear(), torch.tensor([300, 400]))
    for rule in (FixedSmallVariance(), DDIM()):
        with pytest.raises(ValueError, match="t=400 is noisier than t=300"):
            sample(lambda x, step: Prediction(x), rule, normal(1, 4), up, BatchGenerator([0]))


@pytest.mark.parametrize(
    "rule", [FixedSmallVariance(), FixedLargeVariance(), DDIM(), DDIM(0.5), DDIM(1.0)], ids=lambda r: type(r).__name__
)
def test_levels_without_noise_or_without_signal_are_defined(rule):
    """Nothing left to remove: x stays. Nothing there at all: the prediction is all. gamma = 0: v determines x0."""
    x, prediction = normal(1, 8), Prediction(normal(2, 8))
    assert torch.equal(rule(x, prediction, SamplingStep(0, 1.0, 0.0), CLEAN, BatchGenerator([0])), x)
    assert torch.equal(
        rule(
            torch.zeros(8), prediction, build_trajectory(ZeroInput(), torch.tensor([0]))[0], CLEAN, BatchGenerator([0])
        ),
        prediction.x0,
    )
    trajectory = build_trajectory(LinearGamma2(T=10), All().steps(10))
    assert trajectory[0].gamma == 0

    def predict(x, step):
        return Prediction(V().to_x0(torch.tanh(x), x, step.level(x)))

    assert torch.isfinite(
        sample(
            predict, rule, initial_noise((2, 3), trajectory[0], BatchGenerator([1])), trajectory, BatchGenerator([2])
        )
    ).all()


def test_a_step_to_where_there_is_no_noise_adds_none():
    """l-DAE's cleanest level has sigma = 0 before the clean stage: one draw fewer than steps, and x stays there."""
    trajectory = build_trajectory(LinearSigma(T=4), All().steps(4))
    rng, other, seen = BatchGenerator([0]), BatchGenerator([0]), []
    predict = lambda x, step: Prediction(0.5 * x)  # noqa: E731
    sample(
        predict,
        FixedLargeVariance(),
        normal(1, 5),
        trajectory,
        rng,
        callback=lambda i, step, x, x0: seen.append((x, x0)),
    )
    for _ in range(2):  # 3 -> 2 -> 1; then 1 -> 0 and 0 -> clean draw nothing
        other.normal((5,))
    assert torch.equal(rng.normal((5,)), other.normal((5,)))
    assert torch.equal(seen[2][0], seen[2][1])  # at sigma = 0 x is the prediction
    assert torch.equal(seen[3][0], seen[2][0])

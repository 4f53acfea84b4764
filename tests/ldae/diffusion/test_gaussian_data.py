"""Samplers on normal data, whose best prediction is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracles import Exact, Normal, NormalWithTrueVariance

from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.gaussian import Gaussian
from ldae.diffusion.posterior import StepBack
from ldae.diffusion.samplers import DDIM, FixedLargeVariance, FixedSmallVariance, LearnedVariance, initial_noise, sample
from ldae.diffusion.schedules import ContinuousGamma, Cosine, DDPMLinear, LinearSigma
from ldae.diffusion.spacing import All, Linear, Quadratic, Stride
from ldae.diffusion.targets import Eps
from ldae.diffusion.trajectory import Prediction, build_trajectory
from ldae.objectives.losses import L1, L2

COUNTS = (1000, 100, 20, 10)
# s -> deviation of the samples for each of COUNTS: DDPMLinear, T = 1000, linear stride, from N(0, 1)
SMALL = {
    1.0: (0.99552, 0.96000, 0.84305, 0.74041),
    0.5: (0.49611, 0.46826, 0.39146, 0.33326),
    0.1: (0.09631, 0.07936, 0.04710, 0.02909),
}
LARGE = {
    1.0: (0.99995, 0.99995, 0.99995, 0.99995),
    0.5: (0.50075, 0.50849, 0.54406, 0.58903),
    0.1: (0.10077, 0.11289, 0.18826, 0.32381),
}
EXACT = {1.0: (0.99995,) * 4, 0.5: (0.49990,) * 4, 0.1: (0.09950,) * 4}
DETERMINISTIC = {
    1.0: (0.99812, 0.98185, 0.91253, 0.83170),
    0.5: (0.49850, 0.48598, 0.43373, 0.37413),
    0.1: (0.09832, 0.08832, 0.05558, 0.03678),
}
TABLE = [("small", SMALL), ("large", LARGE), ("exact", EXACT), ("eta0", DETERMINISTIC)]


def propagated(data, trajectory, kind):
    """The samples' deviation by the coefficients alone."""
    eta, variance = 1.0 - (kind == "eta0"), math.hypot(trajectory[0].gamma, trajectory[0].sigma) ** 2
    for now, then in pairwise(trajectory):
        back = StepBack.between(now, then, eta)
        added = {
            "small": back.beta_tilde,
            "large": back.beta if then.sigma else 0.0,
            "exact": Exact(data).variance(now, then),
            "eta0": 0.0,
        }[kind]
        variance = (back.clean * data.gain(now) + back.noisy) ** 2 * variance + added
    return math.sqrt(variance)


@pytest.mark.parametrize(("kind", "table"), TABLE, ids=[kind for kind, _ in TABLE])
def test_the_samples_deviation_is_the_closed_form(kind, table):
    for s, row in table.items():
        for count, expected in zip(COUNTS, row, strict=True):
            trajectory = build_trajectory(DDPMLinear(), Linear(count).steps(1000))
            assert propagated(Normal(s), trajectory, kind) == pytest.approx(expected, abs=1e-5), (s, count)


class Three:
    """Normal data of s = 1, 0.5 and 0.1 at once, (3, N)."""

    def __init__(self, trajectory):
        self.rows = [NormalWithTrueVariance(Normal(s), trajectory) for s in (1.0, 0.5, 0.1)]

    def __call__(self, x, step):
        predictions = [oracle(row, step) for oracle, row in zip(self.rows, x, strict=True)]
        return Prediction(torch.stack([p.x0 for p in predictions]), torch.stack([p.interpolation for p in predictions]))


RULES = {"small": FixedSmallVariance(), "large": FixedLargeVariance(), "exact": LearnedVariance(), "eta0": DDIM()}


@pytest.mark.parametrize("count", [pytest.param(1000, marks=pytest.mark.slow), 100, 20, 10])
@pytest.mark.parametrize(("kind", "table"), TABLE, ids=[kind for kind, _ in TABLE])
def test_two_hundred_thousand_samples_have_it(kind, table, count):
    """Within 0.5 %; standard errors are a third of that."""
    trajectory = build_trajectory(DDPMLinear(), Linear(count).steps(1000))
    x = sample(
        Three(trajectory),
        RULES[kind],
        initial_noise((3, 200_000), trajectory[0], BatchGenerator([8])),
        trajectory,
        BatchGenerator([9]),
    )
    expected = [row[COUNTS.index(count)] for row in table.values()]
    assert x.std(dim=1).tolist() == pytest.approx(expected, rel=0.005)
    assert x.mean(dim=1).abs().max() < 0.01


@pytest.mark.parametrize("spacing", [All(), Linear(7), Quadratic(20), Stride([3, 9])], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("schedule", [DDPMLinear(), Cosine(), LinearSigma()], ids=lambda s: type(s).__name__)
def test_with_the_true_variance_every_step_keeps_the_marginal(schedule, spacing):
    """For any stride, and for gamma = 1 as well."""
    data, trajectory = Normal(0.5), build_trajectory(schedule, spacing.steps(1000))
    for now, then in pairwise(trajectory):
        if now.sigma and then.sigma:
            back = StepBack.between(now, then)
            k = back.clean * data.gain(now) + back.noisy
            variance = k**2 * data.spread(now) + Exact(data).variance(now, then)
            assert variance == pytest.approx(data.spread(then), rel=1e-9)


# --- super-resolution's steps: the same, over a ramp of its own length


RAMPS = [DDPMLinear(10, 1e-3, 0.9, False), DDPMLinear(100, 1e-4, 0.2, False), DDPMLinear(2000, 1e-6, 1e-2, False)]


def _reference_sr3(eps_of, y, gamma2, rng):
    """Alg. 2 of arXiv 2104.07636; gamma2 is its gamma."""
    for t in range(len(gamma2) - 1, -1, -1):
        alpha = gamma2[t] / (gamma2[t - 1] if t else 1.0)
        y = (y - (1 - alpha) / (1 - gamma2[t]).sqrt() * eps_of(y, gamma2[t])) / alpha.sqrt()
        if t:
            y = y + (1 - alpha).sqrt() * rng.normal(y.shape)
    return y


@pytest.mark.parametrize("schedule", RAMPS, ids=lambda s: str(s.T))
def test_sr3_is_ancestral_sampling_with_the_large_variance(schedule):
    """Its formula in eps is the posterior's mean with an unclipped x0 (arXiv 2104.07636, Eq. 10 and 11)."""

    def eps_of(y, gamma2):
        return (1 - gamma2).sqrt() * y + 0.05 * torch.sin(2 * y)

    def predict(y, step):
        gamma2 = torch.tensor(step.gamma**2, dtype=torch.float64)
        return Prediction((y - step.sigma * eps_of(y, gamma2)) / step.gamma)

    trajectory = build_trajectory(schedule, All().steps(schedule.T))
    y = torch.randn(4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = sample(predict, FixedLargeVariance(), y, trajectory, BatchGenerator([2]))
    torch.testing.assert_close(
        samples, _reference_sr3(eps_of, y, schedule.gamma**2, BatchGenerator([2])), rtol=0, atol=1e-5
    )
    assert sample(predict, FixedLargeVariance(), 5 * y, trajectory, BatchGenerator([2]), clip=True).abs().max() <= 1


CONDITION = torch.tensor([[-0.8], [0.0], [0.3], [0.9]])  # m(x) of four images, as many numbers of each


@pytest.mark.parametrize("schedule", RAMPS, ids=lambda s: str(s.T))
def test_sr3_of_unit_data_is_right_whatever_the_number_of_steps(schedule):
    """Mean within 0.01 of m(x), deviation within 1 %."""
    trajectory, data = build_trajectory(schedule, All().steps(schedule.T)), Normal(1.0, CONDITION)
    assert trajectory[0].gamma ** 2 < 1e-2
    samples = sample(
        data,
        FixedLargeVariance(),
        initial_noise((4, 25_000), trajectory[0], BatchGenerator([1])),
        trajectory,
        BatchGenerator([2]),
    )
    off = samples - CONDITION
    assert off.mean().abs() < 0.01
    assert off.mean(1).abs().max() < 0.02  # a quarter of the numbers each
    assert off.std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("schedule", RAMPS, ids=lambda s: str(s.T))
def test_sr3_of_certain_data_is_right_with_the_small_variance(schedule):
    trajectory, data = build_trajectory(schedule, All().steps(schedule.T)), Normal(1e-4, CONDITION)
    samples = sample(
        data,
        FixedSmallVariance(),
        initial_noise((4, 64), trajectory[0], BatchGenerator([1])),
        trajectory,
        BatchGenerator([2]),
    )
    assert (samples - CONDITION).abs().max() < 1e-3


@pytest.mark.parametrize(("metric", "expected"), [(L2(), 1.0), (L1(), 0.7979)])
def test_sr3s_loss_starts_at_the_moments_of_noise_and_has_their_gradient(metric, expected):
    """A network that answers 0; and finite differences of either power."""
    level, y0 = ContinuousGamma().draw(2000, BatchGenerator([1])), torch.zeros(2000, 3, 4, 4)
    eps = Eps().of(y0, Gaussian().draw(y0, BatchGenerator([2])), level)
    assert metric(torch.zeros_like(eps), eps).mean().item() == pytest.approx(expected, abs=0.01)
    out, y = (torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (3, 4))
    assert torch.autograd.gradcheck(lambda out: metric(out, y), out.requires_grad_())

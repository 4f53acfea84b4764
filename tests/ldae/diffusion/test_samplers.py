"""Ancestral and DDIM chains, and the loop (arXiv 2006.11239, Alg. 2; arXiv 2010.02502, Eq. 12)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracles import TwoModes

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.samplers import (
    DDIM,
    FixedLargeVariance,
    FixedSmallVariance,
    ImprovedColdSampling,
    LearnedVariance,
    NaiveColdSampling,
    add_noise,
    initial_noise,
    sample,
)
from ldae.diffusion.schedules import DDPMLinear, LinearSigma
from ldae.diffusion.spacing import All, Linear, Quadratic, Stride, Trailing
from ldae.diffusion.trajectory import CLEAN, Prediction, build_trajectory


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x, step):
    """Return the x0 of an eps that is a smooth function of x and t."""
    eps = step.sigma * x + 0.05 * torch.sin(2 * x + step.t / 50)
    return Prediction((x - step.sigma * eps) / step.gamma)


# --- whole chains


def _reference_ddpm(eps_of, x, steps, alpha_bar, rng, variance, clip):
    """DDPM's Alg. 2 by its tables, recomputed for the kept steps as improved DDPM does."""
    kept = steps.tolist()[::-1]
    a = alpha_bar[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    beta = 1 - a / before
    for i in range(len(kept) - 1, -1, -1):
        x0 = (x - (1 - a[i]).sqrt() * eps_of(x, kept[i], (1 - a[i]).sqrt())) / a[i].sqrt()
        x0 = x0.clamp(-1, 1) if clip else x0
        x = (before[i].sqrt() * beta[i] * x0 + (1 - beta[i]).sqrt() * (1 - before[i]) * x) / (1 - a[i])
        if i:
            v = {"small": beta[i] * (1 - before[i]) / (1 - a[i]), "large": beta[i]}[variance]
            x = x + v.sqrt() * rng.normal(x.shape)
    return x


def _reference_ddim(eps_of, x, steps, alpha_bar, rng, eta, clip):
    """DDIM's Eq. 12 and 16; a clipped x0 changes eps."""
    kept = [*steps.tolist(), None]
    for t, s in pairwise(kept):
        a, p = alpha_bar[t], alpha_bar[s] if s is not None else torch.tensor(1.0, dtype=torch.float64)
        eps = eps_of(x, t, (1 - a).sqrt())
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        sigma = eta * ((1 - p) / (1 - a)).sqrt() * (1 - a / p).sqrt()
        x = p.sqrt() * x0 + (1 - p - sigma**2).clamp(min=0).sqrt() * eps
        if sigma > 0:
            x = x + sigma * rng.normal(x.shape)
    return x


def eps_of(x, t, sigma):
    return sigma * x + 0.05 * torch.sin(2 * x + t / 50)


CHAINS = [All(), Linear(50), Quadratic(50), Stride([10, 20]), Trailing(30)]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", CHAINS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("rule", "variance"), [(FixedSmallVariance(), "small"), (FixedLargeVariance(), "large")])
def test_ancestral_sampling_is_ddpms_on_the_kept_steps(rule, variance, spacing, clip):
    """With `FixedLargeVariance`, the sigma-hat rows of DDIM's table (arXiv 2010.02502, Table 1)."""
    schedule, x = DDPMLinear(), normal(3, 4, 16)
    steps = spacing.steps(1000)
    samples = sample(network, rule, x, build_trajectory(schedule, steps), BatchGenerator([5]), clip=clip)
    expected = _reference_ddpm(eps_of, x, steps, schedule.gamma**2, BatchGenerator([5]), variance, clip)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    assert samples.std() > 0.01


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("spacing", CHAINS, ids=lambda s: type(s).__name__)
def test_ddim_is_its_paper(eta, spacing, clip):
    schedule, x = DDPMLinear(), normal(3, 4, 16)
    steps = spacing.steps(1000)
    samples = sample(network, DDIM(eta), x, build_trajectory(schedule, steps), BatchGenerator([5]), clip=clip)
    expected = _reference_ddim(eps_of, x, steps, schedule.gamma**2, BatchGenerator([5]), eta, clip)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", CHAINS, ids=lambda s: type(s).__name__)
def test_ddim_with_eta_one_is_ancestral_sampling(spacing, clip):
    """With clipping it takes an eps that changes along with x0."""
    trajectory, x = build_trajectory(DDPMLinear(), spacing.steps(1000)), normal(3, 4, 16)
    samples, expected = (
        sample(network, rule, x, trajectory, BatchGenerator([5]), clip=clip)
        for rule in (DDIM(1.0), FixedSmallVariance())
    )
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    if clip:
        assert samples.abs().max() <= 1


@pytest.mark.parametrize("spacing", [All(), Linear(100), Linear(10), Quadratic(10), Stride([2])])
def test_ddim_with_the_true_noise_passes_through_the_true_levels(spacing):
    """In float32 roundings grow by 1 / gamma, to 2e-4 over 1000 steps."""
    x0, eps, trajectory = normal(1, 4, 16), normal(2, 4, 16), build_trajectory(DDPMLinear(), spacing.steps(1000))
    seen = []

    def predict(x, step):
        return Prediction((x - step.sigma * eps) / step.gamma)

    end = sample(
        predict,
        DDIM(),
        trajectory[0].mixed(x0, eps),
        trajectory,
        BatchGenerator([0]),
        callback=lambda i, s, x, _: seen.append((s, x)),
    )
    torch.testing.assert_close(end, x0, rtol=0, atol=1e-9)
    assert [s for s, _ in seen] == list(trajectory[1:])
    for step, x in seen:
        torch.testing.assert_close(x, step.mixed(x0, eps), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("interpolation", "rule"), [(0.0, FixedSmallVariance()), (1.0, FixedLargeVariance())])
def test_the_ends_of_a_learned_variance_are_the_fixed_ones(interpolation, rule):
    """On the kept steps, with the betas between those (Sec. 4, arXiv 2102.09672)."""
    trajectory, x = build_trajectory(DDPMLinear(), Linear(40).steps(1000)), normal(3, 4, 16)

    def predict(x, step):
        return Prediction(network(x, step).x0, torch.full_like(x, interpolation))

    torch.testing.assert_close(
        sample(predict, LearnedVariance(), x, trajectory, BatchGenerator([5])),
        sample(network, rule, x, trajectory, BatchGenerator([5])),
        rtol=0,
        atol=1e-6,
    )


def test_a_learned_variance_must_have_been_learned():
    with pytest.raises(ConfigError, match="sampler='LearnedVariance' needs a learned variance"):
        sample(
            network,
            LearnedVariance(),
            normal(1, 4),
            build_trajectory(DDPMLinear(), Linear(4).steps(1000)),
            BatchGenerator([0]),
        )


def test_two_modes_keep_their_weights_and_widths():
    """Within 1 % and 3 % at S = 1000."""
    data, trajectory = TwoModes(), build_trajectory(DDPMLinear(), All().steps(1000))
    x = sample(
        data, DDIM(1.0), initial_noise((20_000,), trajectory[0], BatchGenerator([1])), trajectory, BatchGenerator([2])
    )
    left = x < 0
    assert left.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert x[left].std().item() == pytest.approx(0.25, rel=0.03)
    assert x[~left].std().item() == pytest.approx(0.25, rel=0.03)
    assert x[left].mean().item() == pytest.approx(-1, abs=0.02)


# --- the loop


def test_the_network_is_told_the_schedules_own_steps():
    levels = []

    def predict(x, step):
        level = step.level(x)
        levels.append((level.t.tolist(), level.gamma[0].item()))
        return Prediction(x)

    schedule = DDPMLinear()
    sample(
        predict,
        FixedSmallVariance(),
        normal(1, 2, 3),
        build_trajectory(schedule, Linear(4).steps(1000)),
        BatchGenerator([0]),
    )
    assert levels == [([t, t], schedule.gamma[t].float().item()) for t in (750, 500, 250, 0)]


def test_a_chain_goes_on_from_where_it_was_left():
    """Bit by bit, from the x and the draws that it had; and an image does not depend on its neighbours."""
    trajectory, x, kept = build_trajectory(DDPMLinear(), Linear(20).steps(1000)), normal(3, 4, 16).float(), {}
    rng = BatchGenerator([1, 2, 3, 4])
    whole = sample(
        network,
        FixedSmallVariance(),
        x,
        trajectory,
        BatchGenerator([1, 2, 3, 4]),
        callback=lambda i, s, x, _: kept.update({i: (s, x)}),
    )
    half = sample(network, FixedSmallVariance(), x, trajectory[:8], rng)
    assert torch.equal(half, kept[6][1])
    assert torch.equal(sample(network, FixedSmallVariance(), half, trajectory[7:], rng), whole)
    alone = torch.cat(
        [sample(network, FixedSmallVariance(), x[i : i + 1], trajectory, BatchGenerator([i + 1])) for i in range(4)]
    )
    assert torch.equal(alone, whole)


def test_one_stage_is_no_step():
    x = normal(1, 4)
    for rule in (FixedSmallVariance(), DDIM(), NaiveColdSampling(), ImprovedColdSampling()):
        assert torch.equal(sample(network, rule, x, [CLEAN], BatchGenerator([0])), x)


def test_clipping_holds_the_prediction_not_x():
    trajectory, seen = build_trajectory(DDPMLinear(), Linear(10).steps(1000)), []
    x = 3 * normal(1, 64)
    end = sample(
        network,
        FixedLargeVariance(),
        x,
        trajectory,
        BatchGenerator([0]),
        clip=True,
        callback=lambda i, s, x, x0: seen.append((x, x0)),
    )
    assert max(x0.abs().max() for _, x0 in seen) == 1
    assert max(x.abs().max() for x, _ in seen) > 1
    assert torch.equal(end, seen[-1][1])  # the last step is the prediction itself, without noise


def test_amended_values_are_what_the_next_step_starts_from():
    trajectory, seen = build_trajectory(DDPMLinear(), Linear(5).steps(1000)), []

    def predict(x, step):
        seen.append(x.clone())
        return Prediction(x)

    end = sample(
        predict,
        FixedSmallVariance(),
        normal(1, 3),
        trajectory,
        BatchGenerator([0]),
        constrain=lambda x, step: torch.full_like(x, step.t),
    )
    assert [x[0].item() for x in seen[1:]] == [600, 400, 200, 0]
    assert end.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("schedule", [DDPMLinear(), LinearSigma()], ids=lambda s: type(s).__name__)
def test_sampling_starts_from_what_unit_data_would_be_there(schedule):
    step = build_trajectory(schedule, torch.tensor([999]))[0]
    x = initial_noise((100_000,), step, BatchGenerator([3]))
    data = add_noise(normal(4, 100_000).float(), step, BatchGenerator([5]))
    assert x.std().item() == pytest.approx(math.hypot(step.gamma, step.sigma), rel=0.01)
    assert data.std().item() == pytest.approx(x.std().item(), rel=0.02)

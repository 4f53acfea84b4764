"""Edits, inversion, interpolation (arXiv 2108.01073, 2010.02502)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracles import Exact, Normal, TwoModes

from ldae.core.types import BatchGenerator
from ldae.diffusion.editing import edit, invert, slerp
from ldae.diffusion.posterior import StepBack
from ldae.diffusion.samplers import DDIM, FixedLargeVariance, FixedSmallVariance, add_noise, initial_noise, sample
from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearSigma
from ldae.diffusion.spacing import All, Linear
from ldae.diffusion.trajectory import CLEAN, Prediction, build_trajectory, nearest_step

# n -> gain and deviation of an edit, given the guide: DDPMLinear, T = 1000, s = 0.5
EDITS = {200: (0.32579, 0.47272), 300: (0.14104, 0.49500), 500: (0.02088, 0.49989), 700: (0.00175, 0.50000)}
DATA = Normal(0.5)
FULL = build_trajectory(DDPMLinear(), All().steps(1000))


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tail(n, trajectory=FULL, T=1000):
    return trajectory[nearest_step(trajectory, n / T, T) :]


def propagated(trajectory):
    """Gain from the guide and deviation given it, by the coefficients alone."""
    gain, variance = trajectory[0].gamma, trajectory[0].sigma ** 2
    for now, then in pairwise(trajectory):
        back = StepBack.between(now, then)
        k = back.clean * DATA.gain(now) + back.noisy
        gain, variance = k * gain, k**2 * variance + Exact(DATA).variance(now, then)
    return gain, math.sqrt(variance)


@pytest.mark.parametrize("n", EDITS)
def test_an_edit_of_normal_data_is_the_closed_form(n):
    """The last step returns a mean: the deviation misses its 1e-4 or so of variance."""
    trajectory = tail(n)
    assert trajectory[0].t == n - 1
    gain, deviation = EDITS[n]
    assert propagated(trajectory)[0] == pytest.approx(gain, abs=1e-5)
    assert propagated(trajectory)[1] == pytest.approx(deviation, abs=2e-4)
    guide = 2 * normal(n, 50_000)
    edited = edit(DATA, Exact(DATA), guide, trajectory, BatchGenerator([n + 1]))
    measured = ((edited * guide).mean() / (guide**2).mean()).item()
    assert measured == pytest.approx(gain, abs=0.005)
    assert (edited - measured * guide).std().item() == pytest.approx(deviation, rel=0.01)


@pytest.mark.parametrize("count", [100, 20])
def test_fewer_steps_from_the_same_level_are_the_same_edit(count):
    """The part of the guide that is kept depends on the level, not on the number of steps."""
    few = build_trajectory(DDPMLinear(), Linear(count).steps(1000))
    n = 1 + few[len(few) // 2].t
    assert propagated(tail(n, few))[0] == pytest.approx(propagated(tail(n))[0], rel=1e-9)
    assert propagated(tail(n, few))[1] == pytest.approx(propagated(tail(n))[1], rel=1e-4)
    seen = {}
    sample(DATA, DDIM(), normal(1, 8), few, BatchGenerator([0]), callback=lambda i, s, x, _: seen.update({s: x}))
    end = sample(DATA, DDIM(), seen[tail(n, few)[0]], tail(n, few), BatchGenerator([0]))
    assert torch.equal(end, seen[CLEAN])


def test_no_noise_gives_the_guide_back_and_all_of_it_forgets_the_guide():
    """T = 100 rescaled, where alpha_bar ends at 2e-5."""
    trajectory, guide = build_trajectory(DDPMLinear(T=100), All().steps(100)), normal(1, 200_000)
    assert torch.equal(
        edit(DATA, FixedSmallVariance(), guide, tail(0, trajectory, 100), BatchGenerator([0]), repeats=3), guide
    )
    edited = edit(DATA, Exact(DATA), guide, tail(100, trajectory, 100), BatchGenerator([0]))
    assert abs(torch.corrcoef(torch.stack([edited, guide]))[0, 1]) < 0.01


def test_an_edit_moves_further_from_the_guide_the_more_noise_there_is():
    """At the end by twice the data's variance, as for two independent images."""
    trajectory, guide = build_trajectory(DDPMLinear(T=100), All().steps(100)), 0.5 * normal(1, 20_000)
    away = [
        (edit(DATA, Exact(DATA), guide, tail(n, trajectory, 100), BatchGenerator([3])) - guide).square().mean().item()
        for n in (0, 10, 20, 30, 40, 50, 60, 80)
    ]
    assert away[0] == 0
    assert all(a <= b * 1.02 for a, b in pairwise(away))
    assert away[-1] == pytest.approx(2 * 0.25, rel=0.03)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("schedule", [DDPMLinear(T=50), LinearSigma(T=50)], ids=lambda s: type(s).__name__)
def test_what_is_kept_stays_and_the_rest_changes(schedule, repeats):
    """The clean stage has no noise, so that the kept part is the guide itself."""
    trajectory, guide = build_trajectory(schedule, All().steps(50))[20:], normal(1, 2, 3, 8, 8)
    keep = torch.zeros(2, 1, 8, 8)
    keep[:, :, :, :4] = 1

    def run(keep):
        return edit(DATA, FixedSmallVariance(), guide, trajectory, BatchGenerator([5]), keep=keep, repeats=repeats)

    edited = run(keep)
    assert torch.equal(edited[..., :4], guide[..., :4])
    assert (edited[..., 4:] - guide[..., 4:]).abs().mean() > 0.1
    assert torch.equal(run(torch.ones(2, 1, 8, 8)), guide)
    assert torch.equal(run(torch.zeros(2, 1, 8, 8)), run(None))


def test_what_is_kept_has_the_level_after_the_step_and_one_noise():
    trajectory, guide, seen = build_trajectory(DDPMLinear(T=50), All().steps(50))[20:], normal(1, 4, 3), []
    edit(
        DATA,
        FixedSmallVariance(),
        guide,
        trajectory,
        BatchGenerator([5]),
        keep=torch.ones(4, 3),
        callback=lambda i, step, x, _: seen.append((step, x)),
    )
    eps = BatchGenerator([5]).normal((4, 3))
    assert [step for step, _ in seen] == list(trajectory[1:])
    for step, x in seen:
        torch.testing.assert_close(x, step.gamma * guide + step.sigma * eps)


def test_every_repeat_starts_from_the_last_ones_result():
    """Two repeats are two edits, the second of the first's result."""
    trajectory, guide = tail(300)[::30], normal(1, 8)
    rng = BatchGenerator([5])
    first = edit(DATA, DDIM(), guide, [*trajectory, CLEAN], rng)
    second = edit(DATA, DDIM(), first, [*trajectory, CLEAN], rng)
    assert torch.equal(edit(DATA, DDIM(), guide, [*trajectory, CLEAN], BatchGenerator([5]), repeats=2), second)


def test_noising_to_a_level_is_the_corruption():
    step, guide = FULL[400], normal(1, 50)
    assert torch.equal(
        add_noise(guide, step, BatchGenerator([2])), step.gamma * guide + step.sigma * BatchGenerator([2]).normal((50,))
    )
    assert torch.equal(add_noise(guide, CLEAN, BatchGenerator([2])), guide)


def test_the_true_mask_comes_out_of_a_hundred_steps():
    """With eps of the true mask: before rounding within 1e-3, the rounded mean of several runs exactly."""
    mask = (normal(1, 2, 1, 8, 8) > 0).float()
    trajectory = build_trajectory(DDPMLinear(T=100), All().steps(100))

    def predict(x, step):
        eps = (x - step.gamma * (2 * mask - 1)) / step.sigma
        return Prediction((x - step.sigma * eps) / step.gamma)

    runs = torch.stack(
        [
            sample(predict, FixedLargeVariance(), initial_noise(mask.shape, trajectory[0], d), trajectory, d)
            for d in map(BatchGenerator, ([1], [2]))
        ]
    )
    assert (runs - (2 * mask - 1)).abs().max() < 1e-3
    assert torch.equal(((runs + 1) / 2).mean(0).round(), mask)


# --- inversion and interpolation


def test_what_is_encoded_and_decoded_comes_back_the_better_the_more_steps():
    """On two modes; with 200 steps to a thousandth."""
    data, errors = TwoModes(), []
    x0 = data.drawn((4000,), 1)
    for count in (10, 20, 50, 100, 200):
        trajectory = build_trajectory(DDPMLinear(), Linear(count).steps(1000))
        back = sample(data, DDIM(), invert(data, x0, trajectory), trajectory, BatchGenerator([0]))
        errors.append((back - x0).square().mean().item())
    assert all(a > b for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-3


def test_what_is_encoded_is_normal():
    trajectory, x0 = build_trajectory(DDPMLinear(), Linear(500).steps(1000)), TwoModes().drawn((20_000,), 1)
    z = invert(TwoModes(), x0, trajectory)
    assert z.mean().abs() < 0.03
    assert z.std().item() == pytest.approx(1, abs=0.02)
    below = torch.stack([(z < q).float().mean() for q in (-1.0, 0.0, 1.0)])
    assert below.tolist() == pytest.approx([0.1587, 0.5, 0.8413], abs=0.02)


@pytest.mark.parametrize("schedule", [DDPMLinear(), Cosine(), LinearSigma()], ids=lambda s: type(s).__name__)
def test_inversion_undoes_a_chain_whose_noise_the_network_knows(schedule):
    """With the true eps at every level, inversion and sampling follow one line."""
    trajectory = build_trajectory(schedule, Linear(20).steps(1000))
    x0, eps = normal(1, 64).double(), normal(2, 64).double()

    def predict(x, step):
        return Prediction((x - step.sigma * eps) / step.gamma)

    top = invert(predict, x0, trajectory)
    torch.testing.assert_close(top, trajectory[0].mixed(x0, eps), rtol=0, atol=1e-9)
    torch.testing.assert_close(sample(predict, DDIM(), top, trajectory, BatchGenerator([0])), x0, rtol=0, atol=1e-9)


def test_slerp_turns_by_equal_angles():
    a, b = normal(1, 5, 3, 4), normal(2, 5, 3, 4)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)

    def angle(x, y):
        return torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).acos()

    unit = lambda x: x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1)  # noqa: E731
    a, b = unit(a), unit(b)
    for lam in (0.25, 0.5, 0.8):
        mixed = slerp(a, b, lam)
        torch.testing.assert_close(angle(a, mixed), lam * angle(a, b), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mixed.flatten(1).norm(dim=1), torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)  # on one line

"""Spacings: the subsequences of steps that samplers visit (App. D.2, arXiv 2010.02502)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldae.core.errors import ConfigError
from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearGamma2, LinearSigma, Steps
from ldae.diffusion.spacing import All, Exact, Linear, Quadratic, Stride, Trailing
from ldae.diffusion.targets import X0, Eps, V, usable_steps
from ldae.diffusion.trajectory import CLEAN, build_trajectory, nearest_signal, nearest_step

MANY = [All(), Linear(10), Linear(7), Trailing(7), Quadratic(50), Stride([10]), Stride([3, 1, 5]), Exact(10)]


@pytest.mark.parametrize("T", [100, 200, 1000])
@pytest.mark.parametrize("spacing", MANY, ids=lambda s: type(s).__name__)
def test_steps_fall_and_are_steps_of_the_schedule(spacing, T):
    steps = spacing.steps(T)
    assert (steps.diff() < 0).all()
    assert steps[-1] >= 0
    assert steps[0] < T


def test_each_has_its_published_steps():
    assert Linear(4).steps(1000).tolist() == [750, 500, 250, 0]
    assert Linear(3).steps(10).tolist() == [6, 3, 0]
    assert Linear(4).steps(10).tolist() == [7, 5, 2, 0]
    assert Trailing(4).steps(1000).tolist() == [999, 749, 499, 249]
    assert Trailing(3).steps(10).tolist() == [9, 6, 2]
    assert All().steps(4).tolist() == [3, 2, 1, 0]
    assert Stride([4]).steps(1000).tolist() == [999, 666, 333, 0]
    assert Exact(25).steps(100).tolist() == list(range(96, -1, -4))
    assert Exact(34).steps(100)[0] == 99


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 4000))
def test_a_count_of_steps_is_spread_over_the_whole_schedule(data, T):
    """For any S, a divisor of T or not: S falling steps from end to end, no gap longer than ceil(T / S)."""
    count = data.draw(st.integers(1, T))
    widest = -(-T // count)
    linear, trailing = Linear(count).steps(T), Trailing(count).steps(T)
    assert linear.tolist() == [i * T // count for i in range(count)][::-1]
    assert trailing.tolist() == (np.round(T - np.arange(count) * T / count) - 1).astype(int).tolist()
    for steps in (linear, trailing):
        assert len(steps) == count
        assert (steps.diff() < 0).all()
        assert (steps.diff() >= -widest).all()
    assert (int(linear[-1]), int(trailing[0])) == (0, T - 1)
    assert linear[0] >= T - widest
    assert trailing[-1] <= widest


@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize(
    "schedule", [DDPMLinear(), Cosine(), LinearGamma2(), LinearGamma2(T=2), LinearSigma(), Steps()]
)
def test_the_steps_that_can_be_visited_are_those_whose_prediction_determines_x0(schedule, target):
    T, usable = schedule.T, usable_steps(schedule, target)
    assert usable == T - (isinstance(schedule, LinearGamma2) and isinstance(target, Eps))
    for spacing in (All(), Trailing(min(7, usable)), Linear(min(7, usable)), *([Stride([2])] if usable > 1 else [])):
        trajectory = build_trajectory(schedule, spacing.steps(usable))
        if not isinstance(spacing, Linear):
            assert trajectory[0].t == usable - 1
        for step in trajectory:
            answer = target.to_x0(torch.ones(1, 2), torch.ones(1, 2), step.level(torch.ones(1, 2)))
            assert torch.isfinite(answer).all()


@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("count", [10, 20, 50, 100, 1000])
def test_quadratic_steps_are_those_of_the_published_code(count, T):
    published = sorted({int(s) for s in np.linspace(0, math.sqrt(T * 0.8), count) ** 2})
    assert Quadratic(count).steps(T).tolist() == published[::-1]


def test_quadratic_steps_that_fall_together_are_visited_once():
    steps_of = {count: Quadratic(count).steps(1000) for count in (10, 20, 50, 100, 1000)}
    assert {count: len(steps) for count, steps in steps_of.items()} == {10: 10, 20: 20, 50: 49, 100: 96, 1000: 688}
    assert {int(steps[0]) for steps in steps_of.values()} == {800}


def test_sections_have_their_counts_and_both_ends():
    """The example of improved DDPM: 10, 15, 20 of 300 steps; and 4 steps more than three sections hold."""
    steps = Stride([10, 15, 20]).steps(300)
    for section, count in enumerate((10, 15, 20)):
        inside = steps[(steps >= 100 * section) & (steps < 100 * section + 100)]
        assert (len(inside), int(inside[0]), int(inside[-1])) == (count, 100 * section + 99, 100 * section)
    assert sorted(Stride([2, 2, 2]).steps(10).tolist()) == [0, 3, 4, 6, 7, 9]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Linear(11).steps(10), r"spacing.count=11 must be 1 to 10"),
        (lambda: Linear(0).steps(10), r"spacing.count=0 must be 1 to 10"),
        (lambda: Trailing(11).steps(10), r"spacing.count=11"),
        (lambda: Quadratic(11).steps(10), r"spacing.count=11"),
        (lambda: Exact(11).steps(10), r"spacing.count=11"),
        (lambda: Exact(60).steps(100), r"spacing.count=60 is what no whole stride over 100 steps gives; use 50"),
        (lambda: Stride([4, 6]).steps(10), r"spacing.counts=\[4, 6\] asks for 6 of the 5 steps of section 1"),
        (lambda: Stride([1]), r"counts=\[1\] cannot keep both ends"),
        (lambda: Stride([]), r"counts=\[\]"),
    ],
)
def test_what_a_schedule_does_not_have_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_stages_have_the_schedules_numbers_and_end_clean():
    schedule = DDPMLinear()
    trajectory = build_trajectory(schedule, Linear(5).steps(1000))
    assert [step.t for step in trajectory] == [800, 600, 400, 200, 0, -1]
    assert trajectory[-1] == CLEAN
    assert [step.gamma for step in trajectory[:-1]] == schedule.gamma[[800, 600, 400, 200, 0]].tolist()
    assert all(step.gamma**2 + step.sigma**2 == pytest.approx(1, abs=1e-12) for step in trajectory)


@pytest.mark.parametrize("spacing", [All(), Linear(100), Linear(10)], ids=["all", "100", "10"])
def test_where_an_edit_starts_is_a_matter_of_noise_not_of_the_number_of_stages(spacing):
    """n = t0 T steps of noise are those up to index n - 1; by alpha-bar, 0.0786 is that of 500 of 1000 steps."""
    trajectory = build_trajectory(DDPMLinear(), spacing.steps(1000))
    k = 1000 // (len(trajectory) - 1)
    assert abs(trajectory[nearest_step(trajectory, 0.5, 1000)].t - 499) <= k // 2
    assert abs(trajectory[nearest_signal(trajectory, 0.0785872)].t - 499) <= k // 2
    assert trajectory[nearest_step(trajectory, 0.0, 1000)] == trajectory[nearest_signal(trajectory, 1.0)] == CLEAN
    assert nearest_step(trajectory, 1.0, 1000) == 0

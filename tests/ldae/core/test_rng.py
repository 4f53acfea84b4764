"""Counter-based random numbers: pure, uniform, different for every counter."""

from __future__ import annotations

import numpy as np
import torch

from ldae.core.rng import permutation, seed_of, splitmix64, uniforms


def _reference_splitmix64(state):
    """Steele, Lea and Flood 2014, in NumPy's unsigned arithmetic."""
    with np.errstate(over="ignore"):
        z = (np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def test_splitmix64_matches_the_reference():
    values = [0, 1, 2, 12345, 2**62, 2**63 - 1]
    ours = splitmix64(torch.tensor(values)).numpy().view(np.uint64)
    assert [int(a) for a in ours] == [int(_reference_splitmix64(v)) for v in values]
    assert int(ours[0]) == 0xE220A8397B1DCDAF  # the published first output for seed 0


def test_a_seed_is_mixed_from_counter_to_counter():
    for counters in ((0,), (1, 2, 3), (-5, 2**63 - 1), (2**70 + 3,)):
        x = torch.zeros((), dtype=torch.int64)
        for counter in counters:
            x = splitmix64(x ^ ((counter + 2**63) % 2**64 - 2**63))
        assert seed_of(*counters) == (int(x) % 2**64) >> 1


def test_uniforms_are_uniform_and_uncorrelated():
    u = uniforms(0, 3, torch.arange(200_000), 4)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.003
    assert (u.var(0) - 1 / 12).abs().max() < 0.001
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 0.01
    assert torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1].abs() < 0.01


def test_an_image_has_its_numbers_whatever_batch_it_is_in():
    whole = uniforms(1, 2, torch.arange(100), 3)
    assert torch.equal(whole[40:60], uniforms(1, 2, torch.arange(40, 60), 3))
    for seed, epoch in ((1, 3), (2, 2)):
        assert (uniforms(seed, epoch, torch.arange(100), 3) - whole).abs().mean() > 0.2


def test_permutations_are_permutations_that_change_with_every_counter():
    orders = [permutation(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert (orders[0] == orders[1]).sum() < 20
    assert (orders[0] == orders[2]).sum() < 20
    assert torch.equal(orders[0], permutation(0, 0, 1000))


def test_seeds_depend_on_every_counter_and_on_their_order():
    seeds = [seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)]
    assert len(set(seeds)) == 125
    assert all(0 <= s < 2**63 for s in seeds)

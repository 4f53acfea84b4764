"""Counter-based random numbers: pure functions of (seed, epoch, image index), without a state to save.

The order of the data and the augmentations must not depend on the number of workers or processes, nor on the step at
which a run resumes. They are therefore hashes of counters (splitmix64, Steele et al. 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical: torch shifts signed numbers arithmetically


def splitmix64(x: Tensor) -> Tensor:
    """Return the next output of splitmix64 for each state in `x`, int64 of any shape, whose bits count as unsigned."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX2)
    return x ^ _shift_right(x, 31)


def seed_of(*counters: int) -> int:
    """Return a non-negative 63-bit seed that depends on every integer and on their order."""
    x = 0
    for counter in counters:  # as splitmix64, in Python integers: 100 times faster than torch for a single number
        x = ((x ^ counter) + _GOLDEN) & _MASK
        x = ((x ^ (x >> 30)) * _MIX1) & _MASK
        x = ((x ^ (x >> 27)) * _MIX2) & _MASK
        x ^= x >> 31
    return x >> 1


def uniforms(seed: int, epoch: int, index: Tensor, n: int) -> Tensor:
    """Return `n` numbers for each sample, uniform on [0, 1).

    Args:
        seed, epoch: counters that all samples have in common.
        index: (B,) int64 sample indices.
        n: numbers of a sample.

    Returns:
        (B, n) float32 on the device of `index`.
    """
    base = splitmix64(index ^ seed_of(seed, epoch))  # (B,)
    bits = splitmix64(base[:, None] ^ torch.arange(1, n + 1, device=index.device))  # (B, n)
    return _shift_right(bits, 40).float() / (1 << 24)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Return a random permutation of {0, ..., n-1}, (n,) int64 on the CPU."""
    return torch.argsort(splitmix64(torch.arange(n) ^ seed_of(seed, epoch, n)), stable=True)

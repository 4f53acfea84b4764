"""Random numbers as pure functions of (seed, epoch, index): nothing to save, nothing to restore.

An order of the data and an augmentation must not depend on how many workers or processes made them, nor
on where a run was resumed. So they are hashes of counters (splitmix64, Steele et al. 2014), not streams.
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


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift of a signed number


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 read as unsigned; any shape."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX2)
    return x ^ _shifted(x, 31)


def seed_of(*counters: int) -> int:
    """One non-negative 63-bit seed from several integers, each of which matters."""
    x = 0
    for counter in counters:  # as `mix`, in Python's integers: of one number, a hundredth of the time
        x = ((x ^ counter) + _GOLDEN) & _MASK
        x = ((x ^ (x >> 30)) * _MIX1) & _MASK
        x = ((x ^ (x >> 27)) * _MIX2) & _MASK
        x ^= x >> 31
    return x >> 1


def uniforms(seed: int, epoch: int, index: Tensor, n: int) -> Tensor:
    """`n` numbers for each sample, uniform on [0, 1).

    Args:
        index: (B,) int64 sample indices.

    Returns:
        (B, n) float32 on the device of `index`.
    """
    base = mix(index ^ seed_of(seed, epoch))  # (B,)
    bits = mix(base[:, None] ^ torch.arange(1, n + 1, device=index.device))  # (B, n)
    return _shifted(bits, 40).float() / (1 << 24)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """An order of {0, ..., n-1}: (n,) int64 on the CPU."""
    return torch.argsort(mix(torch.arange(n) ^ seed_of(seed, epoch, n)), stable=True)

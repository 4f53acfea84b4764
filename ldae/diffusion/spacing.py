"""Spacings: the steps t of a schedule that a sampler visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Count


class Spacing(ABC):
    """Map from the T steps of a schedule to those that a sampler visits."""

    @abstractmethod
    def steps(self, T: int) -> Tensor:
        """Return the visited steps, (S,) int64 in {0, ..., T-1}, strictly decreasing.

        Raises:
            ConfigError: the schedule has fewer steps than the spacing needs.
        """


class All(Spacing):
    """All steps: T-1, T-2, ..., 0."""

    def steps(self, T: int) -> Tensor:
        """Return T-1, T-2, ..., 0, (T,) int64."""
        return torch.arange(T).flip(0)


class Counted(Spacing):
    """Spacing with a given number of steps.

    Args:
        count: S.
    """

    def __init__(self, count: Count = 50):
        self.count = count

    def steps(self, T: int) -> Tensor:
        """Return the visited steps, (S,) int64, after a check of S."""
        if not 1 <= self.count <= T:
            raise ConfigError("spacing.count", self.count, f"must be 1 to {T}, the steps that can be visited")
        return self.visited(T)

    @abstractmethod
    def visited(self, T: int) -> Tensor:
        """Return the visited steps, for a count that was checked to be in 1..T."""


class Linear(Counted):
    """floor(i T / S) for i = 0, ..., S-1, falling (App. D.2, arXiv 2010.02502: CelebA, LSUN).

    Also called "leading". The noisiest step is floor((S - 1) T / S).

    Args:
        count: S.
    """

    def visited(self, T: int) -> Tensor:
        """Return floor(i T / S), descending, (S,) int64."""
        return (torch.arange(self.count) * T // self.count).flip(0)


class Trailing(Counted):
    """round(T - i T / S) - 1 for i = 0, ..., S-1: as `Linear`, but from the noisiest step (Sec. 3.3, arXiv 2305.08891).

    Args:
        count: S.
    """

    def visited(self, T: int) -> Tensor:
        """Return round(T - i T / S) - 1, descending, (S,) int64."""
        return ((T * (self.count - torch.arange(self.count)).double()) / self.count).round().long() - 1


class Quadratic(Counted):
    """floor(u^2), u evenly spaced from 0 to sqrt(0.8 T), falling (App. D.2, arXiv 2010.02502: CIFAR-10).

    Steps that coincide are visited once: for T = 1000, 96 of 100 remain and 688 of 1000.

    Args:
        count: S, before duplicates are removed.
    """

    REACH = 0.8

    def visited(self, T: int) -> Tensor:
        """Return floor(u^2) without duplicates, descending, (S',) int64 with S' <= S."""
        u = torch.linspace(0, math.sqrt(self.REACH * T), self.count, dtype=torch.float64)
        return (u**2).long().unique().flip(0)


class Stride(Spacing):
    """Equal sections of the steps, evenly spaced steps in each, ends included (arXiv 2102.09672, DiT).

    Step j of n in a section of size m is round(j (m - 1) / (n - 1)). Where T is no multiple of the sections, the first
    are one step longer.

    Args:
        counts: steps of each section, the cleanest first: [50], or [10, 15, 20].
    """

    def __init__(self, counts: list[Count]):
        if not counts or counts == [1]:
            raise ConfigError("counts", counts, "cannot keep both ends; use [2] or more")
        self.counts = counts

    def steps(self, T: int) -> Tensor:
        """Return the evenly spaced steps of every section, descending, (S,) int64."""
        size, longer = divmod(T, len(self.counts))
        visited, start = [], 0
        for i, count in enumerate(self.counts):
            m = size + (i < longer)
            if count > m:
                raise ConfigError("spacing.counts", self.counts, f"asks for {count} of the {m} steps of section {i}")
            visited += [start + round(j * (m - 1) / max(count - 1, 1)) for j in range(count)]
            start += m
        return torch.tensor(visited[::-1])


class Exact(Counted):
    """0, k, 2k, ... up to T-1 with the k that gives exactly S, falling (arXiv 2102.09672, "ddimN").

    Args:
        count: S.
    """

    def visited(self, T: int) -> Tensor:
        """Return the multiples of k below T, descending, (S,) int64."""
        possible = {len(range(0, T, k)): k for k in range(T, 0, -1)}
        if self.count not in possible:
            near = min(possible, key=lambda count: abs(count - self.count))
            raise ConfigError("spacing.count", self.count, f"is what no whole stride over {T} steps gives; use {near}")
        return torch.arange(0, T, possible[self.count]).flip(0)

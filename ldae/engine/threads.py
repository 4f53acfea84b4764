"""Adaptive number of threads: fewer while other processes use cores of the machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

INTERVAL = 1.0  # seconds over which the load is averaged
COMPILED_INTERVAL = 10.0  # the same for compiled blocks, whose compilation for a number of threads takes seconds
# A core counts as busy if other processes use at least the first fraction of it, and as free below the second. If a
# thread runs on a busy core, all threads wait for it at every matrix product (docs/speed.md).
BUSY, FREE = 0.45, 0.35

T = TypeVar("T")


class AdaptiveThreads:
    """Controller that keeps the number of threads at the number of free cores.

    The load comes from /proc/stat; on systems without it the number is constant. A change of the number changes results
    by rounding, so a number that is set (`runtime.threads`) is not adapted.

    Args:
        most: maximum number of threads; torch's current number if None.
    """

    def __init__(self, most: int | None = None):
        self.most = most or torch.get_num_threads()
        self.numbers: Sequence[int] = range(1, self.most + 1)
        self.interval = INTERVAL
        self.cores = cores()
        self.last: tuple[float, float, float] | None = None
        self.reset()

    def for_compiled_blocks(self) -> None:
        """Restrict the choice to all threads or half of them, with a longer interval.

        torch.compile compiles once for each number of threads, and caches a limited number of results.
        """
        self.numbers = sorted({max(1, self.most // 2), self.most})
        self.interval = COMPILED_INTERVAL

    def reset(self) -> None:
        """Restart the measurement of the load, as after a pause of this process."""
        self.last = self._now() if self.most > 1 else None

    def update(self) -> None:
        """Adapt the number of threads at the end of an interval; call it at every step."""
        if self.last is None or time.monotonic() - self.last[0] < self.interval:
            return
        now = self._now()
        if now is None:
            return
        seconds, busy, own = (b - a for a, b in zip(self.last, now, strict=True))
        self.last = now
        threads = torch.get_num_threads()
        if (adapted := self.threads_for_load((busy - own) / seconds, threads)) != threads:
            torch.set_num_threads(adapted)

    def adapted(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the same items, with the number of threads adapted before each, and restore it after the last.

        Worker processes that prepare the items count as load.
        """
        threads = torch.get_num_threads()
        self.reset()
        try:
            for item in items:
                self.update()
                yield item
        finally:
            torch.set_num_threads(threads)
            self.reset()

    def threads_for_load(self, others: float, threads: int) -> int:
        """Return the largest of `numbers` for which there are free cores, else the smallest.

        Args:
            others: mean number of cores that other processes use.
            threads: current number of threads.
        """
        fewest, most = (len(self.cores) - math.ceil(others - bound) for bound in (FREE, BUSY))
        allowed = min(max(threads, fewest), most)
        return max((n for n in self.numbers if n <= allowed), default=self.numbers[0])

    def _now(self) -> tuple[float, float, float] | None:
        """Return time, core seconds of all processes, core seconds of this process; None if unknown."""
        busy = busy_seconds(self.cores)
        return None if busy is None else (time.monotonic(), busy, time.process_time())


def cores() -> set[int]:
    """Return the numbers of the cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_seconds(cores: set[int], path: Path = Path("/proc/stat")) -> float | None:
    """Return the busy seconds of cores since the start of the machine; None if unknown.

    Processes of low priority (nice above 0) do not count, since they yield to this one, unless its own priority is low.

    Args:
        cores: numbers of the cores.
        path: file with the columns of proc_stat(5).
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        rows = [[int(x) for x in row[1:8]] for row in lines if row and row[0] in {f"cpu{n}" for n in cores}]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    if not rows or min(map(len, rows)) < 7:
        return None
    counts_nice = os.getpriority(os.PRIO_PROCESS, 0) > 0
    return sum(user + nice * counts_nice + system + irq + soft for user, nice, system, _, _, irq, soft in rows) / ticks

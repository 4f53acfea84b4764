"""Threads of this process's matrix products, fewer while other processes keep cores of the machine busy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

INTERVAL = 1.0  # seconds over which the load is averaged
COMPILED_INTERVAL = 10.0  # the same with compiled blocks: what is compiled for a number of threads takes seconds
# A core counts as taken from the first share of it on that others use, and as free again below the second. With a
# thread on a taken core all threads wait for that one at every matrix product (docs/speed.md).
TAKEN, FREE = 0.45, 0.35


class AdaptiveThreads:
    """Keeps the number of threads at the number of cores that other processes leave free.

    The load is read from /proc/stat; where there is none the number stays as it is. Changing it changes results by
    rounding: a number that is set (`runtime.threads`) is not adapted.

    Args:
        most: threads at most; torch's present number if None.
    """

    def __init__(self, most: int | None = None):
        self.most = most or torch.get_num_threads()
        self.numbers: Sequence[int] = range(1, self.most + 1)
        self.interval = INTERVAL
        self.cores = cores()
        self.last: tuple[float, float, float] | None = None
        self.reset()

    def for_compiled_blocks(self) -> None:
        """Choose between all threads and half of them alone, by the load of a longer time.

        torch.compile compiles anew for each number of threads, once, and keeps a limited number of results.
        """
        self.numbers = sorted({max(1, self.most // 2), self.most})
        self.interval = COMPILED_INTERVAL

    def reset(self) -> None:
        """Forget the load so far, as after a pause of this process."""
        self.last = self._now() if self.most > 1 else None

    def update(self) -> None:
        """Adapt the number of threads; to be called at every step, and cheap unless the interval is over."""
        if self.last is None or time.monotonic() - self.last[0] < self.interval:
            return
        now = self._now()
        if now is None:
            return
        seconds, busy, own = (b - a for a, b in zip(self.last, now, strict=True))
        self.last = now
        threads = torch.get_num_threads()
        if (found := self.threads_beside((busy - own) / seconds, threads)) != threads:
            torch.set_num_threads(found)

    def threads_beside(self, others: float, threads: int) -> int:
        """Return the number of threads to use: the largest of `numbers` for which there are cores, else the least.

        Args:
            others: cores that other processes use, 0 to all, a mean over some time.
            threads: the present number.
        """
        fewest, most = (len(self.cores) - math.ceil(others - bound) for bound in (FREE, TAKEN))
        allowed = min(max(threads, fewest), most)
        return max((n for n in self.numbers if n <= allowed), default=self.numbers[0])

    def _now(self) -> tuple[float, float, float] | None:
        """Time, core seconds of all processes on these cores, core seconds of this process; None if unknown."""
        busy = busy_seconds(self.cores)
        return None if busy is None else (time.monotonic(), busy, time.process_time())


def cores() -> set[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_seconds(cores: set[int], path: Path = Path("/proc/stat")) -> float | None:
    """Return the seconds that some cores were busy since the start of the machine; None where that is not known.

    Processes of a lower priority than this one's do not count, unless its own was lowered too (nice above 0): they
    give way. Columns of `path` as in proc_stat(5).
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        rows = [[int(x) for x in argv[1:8]] for argv in lines if argv and argv[0] in {f"cpu{n}" for n in cores}]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    if not rows or min(map(len, rows)) < 7:
        return None
    counts_nice = os.getpriority(os.PRIO_PROCESS, 0) > 0
    return sum(user + nice * counts_nice + system + irq + soft for user, nice, system, _, _, irq, soft in rows) / ticks

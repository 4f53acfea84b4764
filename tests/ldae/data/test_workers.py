"""Worker processes: results in order, errors as they were raised, and no death of a process that is waited for."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ldae.core.errors import DataError, PeerError
from ldae.data.workers import WorkerPool


def doubled(x):
    return 2 * x


def failing(x):
    if x == 5:
        raise DataError("five")
    if x == 6:
        raise KeyError("six")
    if x == 7:
        raise OSError(5, "Input/output error")
    return x


def padded(x):
    """Takes and gives back much more than a pipe holds."""
    return x[:1], np.zeros(1 << 20, np.uint8)


def slow(x):
    time.sleep(60 if x == 3 else 0.005)
    return x


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_come_in_the_order_of_tasks(workers, count):
    assert list(WorkerPool(doubled, workers).map(range(count), 3)) == [2 * x for x in range(count)]
    assert not multiprocessing.active_children()


def test_tasks_and_results_larger_than_a_pipe_do_not_block():
    tasks = [bytes([i]) + b"x" * size for i, size in enumerate([10, 1 << 20, 1 << 14, 1 << 14, 1 << 17, 5, 1 << 20])]
    results = list(WorkerPool(padded, 2).map(tasks, 4))
    assert [first for first, _ in results] == [task[:1] for task in tasks]


@pytest.mark.parametrize(
    ("task", "kind", "message"), [(5, DataError, "five"), (6, RuntimeError, "KeyError: 'six'"), (7, OSError, "Input")]
)
def test_errors_are_raised_here(task, kind, message):
    with pytest.raises(kind, match=message):
        list(WorkerPool(failing, 2).map([task], 2))
    assert not multiprocessing.active_children()


def killed_while(pool, results, delay):
    """Seconds from the death of one process to the error that names it."""
    victim = multiprocessing.active_children()[0]
    threading.Timer(delay, victim.kill).start()
    with pytest.raises(PeerError, match=rf"worker process {victim.pid} of \d .* was killed \(SIGKILL\), .*memory"):
        for _ in results:
            pass
    return pool


@pytest.mark.parametrize("work", [doubled, padded, slow])
def test_a_process_that_is_killed_is_named_at_once(work):
    tasks = iter(lambda: b"x" * 100 if work is padded else random.randrange(3), None)  # without end
    pool = WorkerPool(work, 3)
    began = time.monotonic()
    killed_while(pool, pool.map(tasks, 2), 0.1)
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_kills_at_any_moment_never_hang():
    chance = random.Random(0)
    for _ in range(200):
        tasks = iter(lambda: b"x" * 100, None)
        pool = WorkerPool(padded, 3)
        began = time.monotonic()
        killed_while(pool, pool.map(tasks, 3), chance.uniform(0, 0.2))
        assert time.monotonic() - began < 10


def ignores_sigterm(pid):
    ignored = re.search(r"^SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), flags=re.M)[1]
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_closing_ends_busy_processes_that_ignore_sigterm():
    pool = WorkerPool(slow, 2)
    results = pool.map([0, 1, 3, 3], 2)
    assert next(results) == 0
    for child in multiprocessing.active_children():
        while not ignores_sigterm(child.pid):  # the second process may still be starting
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGTERM)
    assert next(results) == 1
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


SCRIPT = """
import os, sys, time
from ldae.data.workers import WorkerPool

def work(x):
    time.sleep(0.3)
    return os.getpid()

results = WorkerPool(work, 2).map(iter(int, 1), 3)
print(next(results), next(results), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["raise OSError(116, 'Stale file handle')", "time.sleep(60)"])
def test_no_process_outlives_the_main_one(end):
    argv = [sys.executable, "-c", SCRIPT.format(end=end)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        pids = process.stdout.readline().split()
        assert len(set(pids)) == 2
        if "sleep" in end:
            process.kill()
        process.wait(timeout=15)
        deadline = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") for pid in pids):
            assert time.monotonic() < deadline, "a worker is left"
            time.sleep(0.05)

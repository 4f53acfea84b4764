"""The number of threads while other processes run: laws of the choice, and a real load."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from ldae.engine import threads
from ldae.engine.threads import AdaptiveThreads, busy_seconds, cores


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_cores():
    """Return a function (count, most) that makes an `AdaptiveThreads` as on a machine of `count` cores."""

    def make(count, most):
        adaptive = AdaptiveThreads(most)
        adaptive.cores = set(range(count))
        return adaptive

    return make


@pytest.mark.parametrize(
    ("count", "most", "now", "others", "then"),
    [
        (2, 2, 2, 0.0, 2),
        (2, 2, 2, 0.3, 2),
        (2, 2, 2, 0.5, 1),
        (2, 2, 2, 2.0, 1),
        (2, 2, 1, 1.0, 1),
        (2, 2, 1, 0.4, 1),  # neither taken nor free: as it is
        (2, 2, 2, 0.4, 2),
        (2, 2, 1, 0.1, 2),
        (8, 8, 8, 1.0, 7),
        (8, 8, 7, 3.0, 5),
        (16, 8, 8, 6.0, 8),  # enough cores are left
        (16, 8, 8, 12.0, 4),
    ],
)
def test_threads_are_as_many_as_cores_are_free(on_cores, count, most, now, others, then):
    assert on_cores(count, most).threads_for_load(others, now) == then


def test_the_choice_stays_within_its_bounds(on_cores):
    adaptive = on_cores(4, 3)
    for others in torch.linspace(0, 6, 61).tolist():
        counts = [adaptive.threads_for_load(others, now) for now in (1, 2, 3)]
        assert all(1 <= n <= 3 for n in counts)
        assert counts == sorted(counts)  # more threads now never lead to fewer then
        assert [adaptive.threads_for_load(others, n) for n in counts] == counts  # and the choice is a fixed point


def test_compiled_blocks_get_all_threads_or_half_of_them(on_cores):
    adaptive = on_cores(8, 8)
    adaptive.for_compiled_blocks()
    counts = {adaptive.threads_for_load(o, now) for o in torch.linspace(0, 9, 91).tolist() for now in (4, 8)}
    assert counts == {4, 8}
    assert [adaptive.threads_for_load(o, 8) for o in (0.1, 1.0, 7.0)] == [8, 4, 4]
    assert adaptive.threads_for_load(0.0, 4) == 8


def test_torch_compile_compiles_once_for_each_number_of_threads(two_threads):
    """The reason for two numbers alone; a later torch may keep one result for all."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(torch.get_num_threads())
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    for number in (2, 1, 2, 1):
        torch.set_num_threads(number)
        double(torch.ones(3))
    assert len(compiled) <= 2


@pytest.mark.skipif(busy_seconds(cores()) is None, reason="no /proc/stat")
def test_busy_processes_take_threads_away_and_give_them_back(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "INTERVAL", 0.3)
    adaptive = AdaptiveThreads()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores()]
    try:
        time.sleep(0.2)
        adaptive.reset()
        time.sleep(0.5)
        adaptive.update()
        assert torch.get_num_threads() == 1
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_the_number_of_threads_is_adapted_to_the_load_of_workers_and_restored(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "INTERVAL", 0.0)
    monkeypatch.setattr(AdaptiveThreads, "threads_for_load", lambda *_: 1)
    adaptive = AdaptiveThreads()
    items = adaptive.adapted(iter("abc"))
    assert [(item, torch.get_num_threads()) for item in items] == [("a", 1), ("b", 1), ("c", 1)]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(busy_seconds(cores()) is None, reason="no /proc/stat")
def test_own_work_is_no_load(two_threads):
    """The CPU time of this process is part of the busy time, from which it is subtracted."""
    adaptive = AdaptiveThreads()
    _, busy, own = adaptive.last
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    _, busy_then, own_then = adaptive._now()
    assert own_then - own >= 0.5
    assert busy_then - busy >= 0.9 * (own_then - own)


def test_without_a_known_load_nothing_changes(two_threads, tmp_path, monkeypatch):
    assert busy_seconds({0}, tmp_path / "absent") is None
    (tmp_path / "other").write_text("cpu0 of another parts\n")
    assert busy_seconds({0}, tmp_path / "other") is None
    monkeypatch.setattr(threads, "busy_seconds", lambda cores: None)
    monkeypatch.setattr(threads, "INTERVAL", 0.0)
    AdaptiveThreads().update()
    assert torch.get_num_threads() == 2


def test_processes_that_give_way_are_no_load(tmp_path):
    (tmp_path / "stat").write_text("cpu 9 9 9 9 9 9 9\ncpu0 300 70 20 900 5 1 2 0 0 0\ncpu1 1 1 1 1 1 1 1 0 0 0\n")
    lowered = os.getpriority(os.PRIO_PROCESS, 0) > 0
    expected = (300 + 20 + 1 + 2 + 70 * lowered) / os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}, tmp_path / "stat") == pytest.approx(expected)

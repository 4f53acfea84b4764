"""Runs of two processes: one is killed, stalls, or gets a signal to stop (results/faults.json, case 27)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disturbed import at_step, same, until
from helpers import ENVIRONMENT, command, losses, run, status, torchrun

TWO = (
    "train.steps=200",
    "train.log_every=1",
    "train.checkpoint_every=40",
    "monitor.num_evals=0",
    "runtime.threads=1",
    "train.precision=fp32",
)
pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    torchrun("pretrain", f"out={folder}", *TWO)
    return folder


def started(folder, *argv):
    """torchrun with two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, **ENVIRONMENT}
    whole = [*launcher, *command("pretrain", f"out={folder}", *TWO, *argv)[1:]]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def pid_of(rank, launcher):
    """The process that a launcher started as a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = re.search(r"^PPid:\s*(\d+)$", (folder / "status").read_text(), re.M)[1]
            if int(parent) == launcher.pid and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.case("27", "two processes, kill -9 of the second, run again")
def test_a_killed_rank_ends_the_run_and_costs_nothing(straight, tmp_path):
    process = started(tmp_path / "r")
    assert until(at_step(tmp_path / "r", 45), process)
    os.kill(pid_of(1, process), signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode != 0
    torchrun("pretrain", f"out={tmp_path / 'r'}", *TWO)
    assert same(straight, tmp_path / "r")


@pytest.mark.case("stall", "two processes, the second stands still")
def test_a_rank_that_stands_still_is_named(straight, tmp_path):
    process = started(tmp_path / "r", "runtime.timeout=5")
    assert until(at_step(tmp_path / "r", 45), process)
    stalled = pid_of(1, process)
    os.kill(stalled, signal.SIGSTOP)
    began = time.monotonic()
    assert until(lambda: status(tmp_path / "r")["state"] == "failed", process, seconds=40), "it waits for ever"
    os.kill(stalled, signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    report = status(tmp_path / "r")
    assert re.search(r"process 1 .*runtime\.timeout=5", report["message"]), report
    assert report["code"] == 74
    torchrun("pretrain", f"out={tmp_path / 'r'}", *TWO)
    assert same(straight, tmp_path / "r")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.case("3", "two processes, SIGTERM to one of them, run again")
def test_a_signal_to_one_rank_stops_all_at_one_step(straight, tmp_path, rank):
    process = started(tmp_path / "r")
    assert until(at_step(tmp_path / "r", 45), process)
    os.kill(pid_of(rank, process), signal.SIGTERM)
    process.communicate(timeout=60)
    report = status(tmp_path / "r")
    assert (report["state"], report["code"]) == ("interrupted", 75)
    assert report["step"] == max(losses(tmp_path / "r"))
    torchrun("pretrain", f"out={tmp_path / 'r'}", *TWO)
    assert same(straight, tmp_path / "r")


@pytest.mark.case("27", "two processes are stopped, one alone goes on: the same batches")
def test_a_run_goes_on_with_another_number_of_processes(straight, tmp_path):
    folder = tmp_path / "r"
    process = started(folder)
    assert until(at_step(folder, 45), process)
    os.kill(pid_of(0, process), signal.SIGTERM)
    process.communicate(timeout=60)
    assert status(folder)["state"] == "interrupted"
    run("pretrain", f"out={folder}", *TWO)
    a, b = ({s: float.fromhex(x) for s, x in losses(f).items()} for f in (straight, folder))
    assert a.keys() == b.keys()
    assert max(abs(a[s] - b[s]) for s in a) < 1e-3

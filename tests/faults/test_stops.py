"""Signals and kills: what was saved goes on bit for bit (results/faults.json, cases 1 to 6, 12, 13, 15)."""

from __future__ import annotations

import os
import random
import shutil
import signal

import pytest
from disturbed import at_step, ended, killed_and_rerun, same, signalled, started, until
from helpers import SHORT, losses, run, status

LONG = (
    "train.steps=3000",
    "train.log_every=1",
    "train.checkpoint_every=10",
    "monitor.num_evals=3",
    "runtime.threads=1",
)


@pytest.mark.slow
@pytest.mark.case("1", "two runs are one")
def test_two_runs_are_one(reference, tmp_path):
    run("pretrain", f"out={tmp_path / 'r'}", *SHORT)
    assert same(reference, tmp_path / "r")


@pytest.mark.case("2", "kill -9 at random times, run again")
def test_kill_9_at_random_instants_loses_nothing(reference, tmp_path, tries):
    chance = random.Random(0)
    delays = [1.0, chance.uniform(2, 4), chance.uniform(4, 6)]  # the first while Python still starts, on any machine
    alive = killed_and_rerun(tmp_path / "r", delays, SHORT)
    assert same(reference, tmp_path / "r")
    assert alive
    tries(alive)


@pytest.mark.slow
@pytest.mark.case("2", "kill -9 at 100 random times of a run of 3,000 steps, run again each time")
def test_kill_9_at_100_random_instants_loses_nothing(tmp_path, tries):
    run("pretrain", f"out={tmp_path / 'straight'}", *LONG)
    chance, killed, alive, runs = random.Random(1), tmp_path / "killed", 0, 0
    while alive < 100:  # a run that comes to its end between two kills is begun anew
        delays = [chance.uniform(1, 10) for _ in range(min(20, 100 - alive))]
        alive += killed_and_rerun(killed / str(runs), delays, LONG)
        assert same(tmp_path / "straight", killed / str(runs))
        assert len(losses(killed / str(runs))) == 3000
        runs += 1
    tries(alive)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.case("2", "kill -9 while blocks are compiled, run again each time")
def test_kill_9_while_blocks_are_compiled_loses_nothing(tmp_path, tries):
    argv = (*SHORT, "train.compile=true")
    run("pretrain", f"out={tmp_path / 'straight'}", *argv)
    delays = [3 + 0.25 * k for k in range(20)]  # the first step compiles, from 2 or 3 seconds to 7 or more
    alive = killed_and_rerun(tmp_path / "r", delays, argv)
    assert same(tmp_path / "straight", tmp_path / "r")
    assert alive > 6
    tries(alive)


SIGNALS = [(signal.SIGTERM, "3"), (signal.SIGINT, "5"), (signal.SIGUSR1, "5"), (signal.SIGHUP, "A11")]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            n, marks=[pytest.mark.case(c, f"{n.name} at a step, run again"), *([pytest.mark.slow] * (c != "3"))]
        )
        for n, c in SIGNALS
    ],
)
@pytest.mark.usefixtures("terminal")
def test_a_signal_is_saved_answered_with_75_and_resumed(reference, tmp_path, number):
    for attempt in range(5):  # the last step may be over before the signal comes
        folder = tmp_path / str(attempt)
        code = signalled(folder, SHORT, number, step=2)
        if (reached := status(folder)["step"]) < 12:
            break
    assert (code, reached < 12) == (75, True)
    assert status(folder)["state"] == "interrupted"
    assert status(folder)["code"] == 75
    run("pretrain", f"out={folder}", *SHORT)
    assert same(reference, folder)


@pytest.mark.slow
@pytest.mark.case("4", "SIGTERM to the whole process group, loader workers too")
def test_workers_that_get_the_signal_too_lose_nothing(tree, tmp_path):
    argv = (*tree, "train.steps=60", "train.batch=16", "train.log_every=1", "monitor.num_evals=0", "runtime.threads=1")
    run("pretrain", f"out={tmp_path / 'straight'}", *argv)
    assert signalled(tmp_path / "r", argv, signal.SIGTERM, group=True) == 75
    run("pretrain", f"out={tmp_path / 'r'}", *argv)
    assert same(tmp_path / "straight", tmp_path / "r")


@pytest.mark.slow
@pytest.mark.case("6", "SIGTERM while a checkpoint is written")
def test_a_signal_while_a_checkpoint_is_written(tmp_path, tries):
    argv = (
        "train.steps=300",
        "train.log_every=1",
        "train.checkpoint_every=1",
        "monitor.num_evals=0",
        "runtime.threads=1",
    )
    run("pretrain", f"out={tmp_path / 'straight'}", *argv)
    for k in range(5):
        folder = tmp_path / str(k)
        process = started(f"out={folder}", *argv)
        writing = lambda at=folder / "checkpoints": at.exists() and any(at.glob(".tmp-*"))  # noqa: E731
        assert until(writing, process)
        os.kill(process.pid, signal.SIGTERM)
        assert ended(process)[0] == 75
        assert not any((folder / "checkpoints").glob(".tmp-*"))
        run("pretrain", f"out={folder}", *argv)
        assert same(tmp_path / "straight", folder)
    tries(5)


@pytest.mark.case("12", "a second process on a live run")
def test_a_live_run_is_not_disturbed(tmp_path):
    folder, argv = tmp_path / "r", ("train.steps=3000", "train.log_every=1", "monitor.num_evals=0", "runtime.threads=1")
    process = started(f"out={folder}", *argv)
    assert until(at_step(folder, 3), process)
    _, err = run("pretrain", f"out={folder}", *argv, code=73)
    assert "held by another process" in err
    assert until(at_step(folder, max(losses(folder)) + 3), process)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    assert sorted(losses(folder)) == list(range(1, max(losses(folder)) + 1))
    assert status(folder)["state"] == "interrupted"


@pytest.mark.slow
@pytest.mark.case("13", "kill -9, run again at once: the lock is free")
def test_a_lock_dies_with_its_process(reference, tmp_path):
    process = started(f"out={tmp_path / 'r'}", *SHORT)
    assert until(at_step(tmp_path / "r", 2), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run("pretrain", f"out={tmp_path / 'r'}", *SHORT)
    assert same(reference, tmp_path / "r")


@pytest.mark.case("15", "a finished run, run again")
def test_a_finished_run_is_left_alone(reference):
    before = {p: p.stat().st_mtime_ns for p in reference.rglob("*") if p.is_file()}
    out, _ = run("pretrain", f"out={reference}", *SHORT)
    assert "is finished; nothing to do" in out
    assert before == {p: p.stat().st_mtime_ns for p in reference.rglob("*") if p.is_file()}
    _, err = run("pretrain", f"out={reference}", *SHORT, "optim.blr=0.5", code=2)
    assert "optim.blr was 0.016, is 0.5" in err

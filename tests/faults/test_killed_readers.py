"""Processes that read images are killed, or the run they read for fails: it ends at once, and so do they."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from disturbed import at_step, ended, started, until
from helpers import status

LONG = ("train.steps=100000", "train.batch=16", "train.log_every=1", "monitor.num_evals=0", "runtime.threads=1")
pytestmark = pytest.mark.slow


def children_of(process):
    """Process ids of a process's children."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.case("A2", "kill -9 of a process that reads images, at any moment")
def test_a_killed_reader_ends_the_run_with_74(tree, tmp_path, tries):
    chance, count = random.Random(0), 6
    for k in range(count):
        folder = tmp_path / str(k)
        process = started(f"out={folder}", *tree, *LONG)
        assert until(at_step(folder, 2), process), ended(process)
        time.sleep(chance.uniform(0, 1))
        readers = children_of(process)
        os.kill(chance.choice(readers), signal.SIGKILL)
        began = time.monotonic()
        code, err = ended(process, seconds=15)
        assert time.monotonic() - began < 15
        assert code == status(folder)["code"] == 74
        assert "that read images was killed (SIGKILL), most likely because memory ran out" in err
        assert not any(os.path.exists(f"/proc/{pid}") for pid in readers)
    tries(count)


@pytest.mark.case("A1", "the run folder is moved away while processes read images")
def test_a_run_folder_that_goes_away_ends_the_run_with_its_readers(tree, tmp_path):
    folder = tmp_path / "r"
    process = started(f"out={folder}", *tree, *LONG, "train.checkpoint_every=20")
    assert until(at_step(folder, 2), process), ended(process)
    readers = children_of(process)
    shutil.move(folder, tmp_path / "elsewhere")
    code, _ = ended(process, seconds=30)
    assert code in (73, 74)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in readers)

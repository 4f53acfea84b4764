"""Memory, open files and files on disk over a long run (slow)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from disturbed import at_step, ended, started
from helpers import run

STEPS = 20_000


def measured(process):
    """Return MiB of memory and the number of open files of the process that bash became; None once it is ending."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
    except OSError:
        return None
    resident = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]  # an ended process has none
    return (resident[0], files) if resident and process.poll() is None else None


@pytest.mark.slow
@pytest.mark.case("long run", f"{STEPS:,} tiny steps: memory, open files, TensorBoard files, checkpoints")
def test_nothing_grows_with_the_steps(tmp_path, tries, record_property):
    argv = (
        "denoiser.width=16",
        "denoiser.heads=2",
        "denoiser.encoder_depth=1",
        "denoiser.decoder_depth=1",
        "train.batch=8",
        f"train.steps={STEPS}",
    )
    folder = tmp_path / "r"
    whole = (*argv, "train.keep=3", "train.log_every=100", "train.checkpoint_every=1000", "monitor.num_evals=20")
    process = started(f"out={folder}", *whole, "runtime.threads=1")
    seen = []
    while process.poll() is None:
        time.sleep(0.5)
        if at_step(folder, STEPS // 10)() and (now := measured(process)):
            seen.append((time.monotonic(), *now))
    assert ended(process)[0] == 0
    times, memory, files = np.array(seen).T
    slope = np.polyfit((times - times[0]) / (times[-1] - times[0]), memory, 1)[0]
    print(f"{len(seen)} measurements over the last nine tenths: {slope:+.1f} MiB, {memory.max():.0f} MiB at most")
    record_property("slope_mib", float(slope))
    assert abs(slope) < 16
    assert files.max() <= files[0] + 2
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")) == [18000, 19000, 20000]
    tries(STEPS)
    run("checkpoint", "verify", folder)

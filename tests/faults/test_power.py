"""The power is lost after any call that syncs or names a file: what was saved stays saved, and goes on bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disturbed import same
from helpers import ENVIRONMENT, ROOT, SHORT, complete, losses, run

from ldae.engine.checkpoint import newest

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc")


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Return (run folder, step of the last checkpoint that was reported as saved) after each power cut."""
    disk, snapshots = (tmp_path_factory.mktemp(name) for name in ("disk", "snapshots"))
    script, env = Path(__file__).parent / "power.py", {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(script), str(disk), str(snapshots), "pretrain"]
    argv += complete("pretrain", [f"out={disk / 'r'}", *SHORT])
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    saved = json.loads((snapshots / "saved.json").read_text())
    assert max(saved.values()) == 12
    return [(snapshots / name / "r", step) for name, step in saved.items()]


@pytest.mark.case("power", "a power cut after each sync and renaming of a run: checkpoint and metrics")
def test_no_power_cut_loses_what_was_saved(cuts, tries):
    lost = []
    for folder, step in cuts:
        checkpoint = newest(folder / "checkpoints", set_aside=False)
        reached = checkpoint.step if checkpoint else 0
        kept = losses(folder) if (folder / "metrics.jsonl").exists() else {}
        if reached < step or not set(range(1, reached + 1)) <= kept.keys():
            lost.append((folder.parent.name, step, reached, sorted(kept)))
    tries(len(cuts), len(lost))
    assert not lost
    assert len(cuts) > 50


@pytest.mark.slow
@pytest.mark.case("power", "a power cut after each eighth of them, run again")
def test_after_a_power_cut_a_run_goes_on(cuts, reference, tmp_path, tries):
    chosen = cuts[7::8]
    for folder, _ in chosen:
        copy = tmp_path / folder.parent.name
        if folder.exists():
            shutil.copytree(folder, copy)
        run("pretrain", f"out={copy}", *SHORT)
        assert same(reference, copy), folder.parent.name
    tries(len(chosen))

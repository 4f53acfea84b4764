"""Damaged picture files, through every loader: nothing crashes, and exactly the unreadable are left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

pytest.importorskip("datasets", reason="pip install 'ldae[hub]'")


def check(tmp_path, count):
    script, env = Path(__file__).parent / "mutated.py", {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    env |= {"HF_DATASETS_CACHE": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, str(script), str(tmp_path / "pictures"), str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=3000)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    peak, pillow = names.pop("peak"), set(names.pop("pillow"))
    assert len(names) == 4
    assert {loader: sorted(set(left) ^ pillow) for loader, left in names.items()} == {loader: [] for loader in names}
    assert all(len(left) == len(pillow) for left in names.values())
    assert count / 8 < len(pillow) < 7 * count / 8
    assert peak < 1.5
    return len(pillow)


@pytest.mark.case("mutated", "damaged picture files through every loader")
def test_some_damaged_files(tmp_path, tries):
    check(tmp_path, 200)
    tries(200)


@pytest.mark.slow
@pytest.mark.case("mutated", "damaged picture files through every loader")
def test_ten_thousand_damaged_files(tmp_path, tries):
    print(check(tmp_path, 10_000), "left out")
    tries(10_000)

"""Mutation test of the tests of faults: without its mechanism, in a copy of the repository, each test has to fail.

python tests/faults/sabotage.py [WORD]       # those with WORD in their name; prints a table, 1 if a test passed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = "tests/faults"


@dataclass(frozen=True)
class Sabotage:
    """A mechanism that is taken out.

    Attributes:
        name: of the mechanism.
        file: where it is.
        old, new: text of that file and what it becomes.
        test: the test that has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


ALL = (
    Sabotage(
        "hashes of files",
        "ldae/engine/checkpoint.py",
        'if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:',
        'if file.stat().st_size != entry["size"]:',
        f"{FAULTS}/test_storage.py::test_every_damage_is_detected[flipped]",
    ),
    Sabotage(
        "the manifest's own hash",
        "ldae/engine/checkpoint.py",
        'manifest["format"] == FORMAT and manifest.get("own") != content_hash(manifest)',
        "False",
        f"{FAULTS}/test_storage.py::test_every_damage_is_detected[flipped]",
    ),
    Sabotage(
        "falling back to the checkpoint before",
        "ldae/engine/checkpoint.py",
        "        for path in list_checkpoints(root):\n            try:\n",
        "        for path in list_checkpoints(root)[:1]:\n            try:\n",
        f"{FAULTS}/test_storage.py::test_a_cut_checkpoint_gives_way_to_the_one_before",
    ),
    Sabotage(
        "no fresh start without a whole checkpoint",
        "ldae/engine/checkpoint.py",
        'if reasons or (root.is_dir() and any(root.glob(".bad-*"))):',
        "if False:",
        f"{FAULTS}/test_storage.py::test_without_a_whole_checkpoint_there_is_no_fresh_start",
    ),
    Sabotage(
        "syncing of files and folders",
        "ldae/core/files.py",
        "        os.fsync(handle)\n",
        "        pass\n",
        f"{FAULTS}/test_power.py::test_no_power_cut_loses_what_was_saved",
    ),
    Sabotage(
        "the folder synced after the renaming",
        "ldae/core/files.py",
        "            replace_folder(temporary, target)\n            fsync(target.parent)\n",
        "            replace_folder(temporary, target)\n",
        f"{FAULTS}/test_power.py::test_no_power_cut_loses_what_was_saved",
    ),
    Sabotage(
        "rows synced before the checkpoint",
        "ldae/engine/logging.py",
        "            os.fsync(self.file.fileno())\n",
        "",
        f"{FAULTS}/test_power.py::test_no_power_cut_loses_what_was_saved",
    ),
    Sabotage(
        "errors of a full disk",
        "ldae/core/files.py",
        "    except SafetensorError as error:\n        number =",
        "    except ZeroDivisionError as error:\n        number =",
        f"{FAULTS}/test_storage.py::test_a_full_disk_leaves_the_last_checkpoint",
    ),
    Sabotage(
        "the lock",
        "ldae/engine/run_folder.py",
        "            self._lock.acquire()\n",
        "",
        f"{FAULTS}/test_stops.py::test_a_live_run_is_not_disturbed",
    ),
    Sabotage(
        "the poll of signals",
        "ldae/engine/signals.py",
        "        if self.signal_name:\n",
        "        if False:\n",
        f"{FAULTS}/test_stops.py::test_a_signal_is_saved_answered_with_75_and_resumed[15]",
    ),
    Sabotage(
        "workers that ignore signals",
        "ldae/data/workers.py",
        "    ignore_signals()\n",
        "",
        f"{FAULTS}/test_stops.py::test_workers_that_get_the_signal_too_lose_nothing",
    ),
    Sabotage(
        "one answer of all processes to a signal",
        "ldae/engine/guard.py",
        "flags = self.world.max(torch.stack([bad, torch.full_like(bad, float(bool(self.stop.signal_name)))]))",
        "flags = torch.stack([bad, torch.full_like(bad, float(bool(self.stop.signal_name)))])",
        f"{FAULTS}/test_processes.py::test_a_signal_to_one_rank_stops_all_at_one_step",
    ),
    Sabotage(
        "the watch over processes that stand still",
        "ldae/app/session.py",
        "with self.world.report_lost_processes(), self.stop.at_once():",
        "with self.stop.at_once():",
        f"{FAULTS}/test_processes.py::test_a_rank_that_stands_still_is_named",
    ),
    Sabotage(
        "the check for NaN and infinity",
        "ldae/engine/guard.py",
        "bad = (~torch.isfinite(values)).any().float()",
        "bad = torch.zeros(())",
        f"{FAULTS}/test_numbers.py",
    ),
    Sabotage(
        "the hash that a kept file carries",
        "ldae/core/files.py",
        "    if digest.hexdigest() != expected:\n",
        "    if False:\n",
        "tests/ldae/core/test_files.py::test_no_flipped_bit_of_a_tensor_file_changes_what_is_read",
    ),
    Sabotage(
        "the hash of a feature bank's labels",
        "linear_probe/features.py",
        "        names = (LABELS, *map(str, feature_keys))\n        return",
        "        names = tuple(map(str, feature_keys))\n        return",
        "tests/ldae/app/training/test_kept_files.py::test_changed_labels_of_a_feature_bank_are_noticed",
    ),
    Sabotage(
        "answering a signal where it arrives",
        "ldae/engine/signals.py",
        "        if self._prompt:\n",
        "        if False:\n",
        "tests/ldae/app/sampling/test_sample.py::test_a_signal_is_answered_within_two_seconds",
    ),
    Sabotage(
        "the end by a second signal",
        "ldae/engine/signals.py",
        "            if now - self._first > SECOND:\n",
        "            if False:\n",
        "tests/ldae/engine/test_signals.py::test_a_second_signal_ends_at_once_but_not_the_same_one_sent_twice",
    ),
    Sabotage(
        "waiting for a tokenizer that another run makes",
        "ldae/app/training/tokenizer_cache.py",
        "    except LockedError:\n        return False\n",
        "    except ZeroDivisionError:\n        return False\n",
        "tests/ldae/app/training/test_kept_files.py::test_a_second_run_waits_for_the_tokenizer_that_a_first_one_makes",
    ),
    Sabotage(
        "renaming before removing",
        "ldae/engine/checkpoint.py",
        "        remove_folder(old)\n",
        "        __import__('shutil').rmtree(old)\n",
        "tests/ldae/engine/test_checkpoint.py::test_a_removal_that_is_cut_short_leaves_no_part_of_a_checkpoint",
    ),
    Sabotage(
        "reading on while checkpoints are removed",
        "ldae/engine/checkpoint.py",
        "                if not path.exists():\n",
        "                if False:\n",
        "tests/ldae/engine/test_checkpoint.py::test_the_newest_is_read_while_a_run_replaces_them",
    ),
    Sabotage(
        "noise by step, not by process",
        "ldae/engine/trainer.py",
        "seed_of(self.seed, 2, step, first + k)",
        "seed_of(self.seed, 2, step - self.saved, first + k)",
        f"{FAULTS}/test_stops.py::test_a_signal_is_saved_answered_with_75_and_resumed[15]",
    ),
)


def noticed(sabotage: Sabotage) -> bool:
    """Return whether the test fails without the mechanism."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        left = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=left)
        text = (copy / sabotage.file).read_text()
        if text.count(sabotage.old) != 1:
            raise SystemExit(f"{sabotage.file} has not once {sabotage.old!r}")
        (copy / sabotage.file).write_text(text.replace(sabotage.old, sabotage.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", sabotage.test]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(done.stdout[-2000:])
        if done.returncode:
            reason = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
            print(f"{sabotage.name}: {reason[0][:200] if reason else done.stdout[-200:]}", file=sys.stderr)
        return done.returncode == 1


if __name__ == "__main__":
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    results = {sabotage: noticed(sabotage) for sabotage in ALL if word in sabotage.name}
    print("| taken out | test | noticed |\n|---|---|---|")
    for sabotage, red in results.items():
        print(f"| {sabotage.name} | `{sabotage.test.removeprefix(FAULTS + '/')}` | {'yes' if red else 'NO'} |")
    sys.exit(not all(results.values()))

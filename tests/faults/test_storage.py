"""Full disks and damaged checkpoints (results/faults.json, cases 7 to 11, 14, 24, 28): nothing is lost silently."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess

import pytest
import torch
from disturbed import ended, newest, same, started
from helpers import SHORT, as_if_stopped, run, status

from ldae.core.files import sha256
from ldae.engine.checkpoint import content_hash

BARE = (*SHORT, "monitor.num_evals=0")
PAGE = 4096


@contextlib.contextmanager
def mounted(folder, options):
    """A tmpfs; skips where this process may not mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this process may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.case("7", "the disk is full at the second checkpoint, then made larger")
def test_a_full_disk_leaves_the_last_checkpoint(reference, tmp_path):
    room = int(1.5 * size_of(newest(reference)))
    with mounted(tmp_path / "disk", f"size={room}") as disk:
        code, err = ended(started(f"out={disk / 'r'}", *BARE))
        assert code == 74, err
        assert status(disk / "r")["code"] == 74
        run("checkpoint", "verify", disk / "r")
        subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
        run("pretrain", f"out={disk / 'r'}", *BARE)
        assert same(reference, disk / "r")


@pytest.mark.slow
@pytest.mark.case("8", "ulimit -f below the size of a file")
def test_a_file_that_may_not_grow_is_74(reference, tmp_path):
    blocks = max(path.stat().st_size for path in newest(reference).iterdir()) // 2048
    code, err = ended(started(f"out={tmp_path / 'r'}", *BARE, limits=f"ulimit -f {blocks}"))
    assert code == 74, err
    assert not list((tmp_path / "r" / "checkpoints").glob("*"))
    run("pretrain", f"out={tmp_path / 'r'}", *BARE)
    assert same(reference, tmp_path / "r")


def damages(path, kind):
    """Every way in which a file can be damaged so: functions that do it."""
    raw, chance = path.read_bytes(), random.Random(0)
    if kind == "truncated":
        return [raw[:k] for k in range(0, len(raw), PAGE)]
    if kind == "flipped":
        places = [chance.randrange(8 * len(raw)) for _ in range(200)]
        return [raw[: p // 8] + bytes([raw[p // 8] ^ 1 << p % 8]) + raw[p // 8 + 1 :] for p in places]
    pages = [k for k in range(0, len(raw), PAGE) if any(raw[k : k + PAGE])]
    return [raw[:k] + bytes(len(raw[k : k + PAGE])) + raw[k + PAGE :] for k in pages]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("truncated", marks=pytest.mark.case("9", "each file of a checkpoint cut at each 4 KiB")),
        pytest.param("flipped", marks=pytest.mark.case("10", "200 flipped bits in each file of a checkpoint")),
        pytest.param("zeroed", marks=pytest.mark.case("10", "each 4 KiB page of each file of a checkpoint zeroed")),
    ],
)
def test_every_damage_is_detected(reference, tmp_path, in_process, tries, kind):
    folder = tmp_path / "r"
    shutil.copytree(reference, folder)
    missed, count = [], 0
    for path in sorted(newest(folder).iterdir()):
        whole = path.read_bytes()
        for damaged in damages(path, kind):
            path.write_bytes(damaged)
            code, message = in_process("checkpoint", "verify", str(folder))
            if code != 65 or "1 of 2 checkpoints are damaged" not in message:
                missed.append((path.name, code, message))
            count += 1
        path.write_bytes(whole)
    tries(count, len(missed))
    assert not missed
    run("checkpoint", "verify", folder)


@pytest.mark.slow
@pytest.mark.case("10", "a flipped bit in the newest checkpoint, run again")
def test_a_damaged_checkpoint_gives_way_to_the_one_before(reference, tmp_path):
    folder = as_if_stopped(reference, tmp_path / "r", step=12)
    raw = bytearray((newest(folder) / "model.safetensors").read_bytes())
    raw[-9] ^= 4
    (newest(folder) / "model.safetensors").write_bytes(raw)
    assert "1 of 2 checkpoints are damaged" in run("checkpoint", "verify", folder, code=65)[1]
    _, err = run("pretrain", f"out={folder}", *SHORT)
    assert "model.safetensors is damaged" in err
    assert same(reference, folder)


@pytest.mark.slow
@pytest.mark.case("9", "the newest checkpoint cut short, run again")
def test_a_cut_checkpoint_gives_way_to_the_one_before(reference, tmp_path, tries):
    chance, names = random.Random(2), ["model", "ema", "optim", "rng"]
    for name in names:
        folder = as_if_stopped(reference, tmp_path / name, step=12)
        path = newest(folder) / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        run("pretrain", f"out={folder}", *SHORT)
        assert same(reference, folder)
        assert list((folder / "checkpoints").glob(".bad-*"))
    tries(len(names))


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "", "{}"], ids=["deleted", "empty", "no keys"])
@pytest.mark.case("11", "the newest checkpoint's manifest deleted, empty, {}; run again")
def test_a_damaged_manifest_gives_way_to_the_checkpoint_before(reference, tmp_path, content):
    folder = as_if_stopped(reference, tmp_path / "r", step=12)
    manifest = newest(folder) / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    run("pretrain", f"out={folder}", *SHORT)
    assert same(reference, folder)


@pytest.mark.case("11", "no whole checkpoint is left")
def test_without_a_whole_checkpoint_there_is_no_fresh_start(reference, tmp_path):
    folder = as_if_stopped(reference, tmp_path / "r")
    for manifest in (folder / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    _, err = run("pretrain", f"out={folder}", *SHORT, code=65)
    assert "no checkpoint in" in err
    assert status(folder)["code"] == 65


@pytest.mark.slow
@pytest.mark.case("14", "the output folder's parent is read-only")
def test_a_read_only_parent_is_73_before_the_first_step(tmp_path):
    with mounted(tmp_path / "disk", "ro") as disk:
        _, err = run("pretrain", f"out={disk / 'r'}", *SHORT, code=73)
        assert "cannot be written" in err


@pytest.mark.case("A17", "the cache is read-only")
def test_a_read_only_cache_is_73_that_names_it(tmp_path, in_process):
    with mounted(tmp_path / "disk", "ro") as disk:
        argv = ("experiment=ldae/digits", "train.steps=1", "monitor.num_evals=0", "train.precision=fp32")
        code, message = in_process("pretrain", *argv, f"data.cache={disk}", f"out={tmp_path / 'r'}")
        assert (code, message.partition(" (")[0]) == (73, f"data.cache={disk} cannot be written")


class Canary:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.slow
@pytest.mark.case("24", "a pickle in a checkpoint's place, its hash put right")
def test_a_pickle_is_never_opened(reference, tmp_path):
    folder, canary = as_if_stopped(reference, tmp_path / "r"), tmp_path / "canary"
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        for name in ("model", "ema", "optim"):
            path = checkpoint / f"{name}.safetensors"
            torch.save({"weight": Canary(canary)}, path)
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "own": content_hash(manifest)}))
    for tool, argv in (("pretrain", (f"out={folder}", *SHORT)), ("probe", (f"run={folder}", "runtime.threads=1"))):
        _, err = run(tool, *argv, code=65)
        assert "manifest.json" not in err  # it is the tensors' files that are refused
        assert not canary.exists()


@pytest.mark.slow
@pytest.mark.case("28", "probe and kNN on a damaged checkpoint")
def test_a_damaged_checkpoint_gets_no_score(reference, tmp_path):
    folder = as_if_stopped(reference, tmp_path / "r", step=12)
    for path in (folder / "checkpoints").rglob("ema.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    out, _ = run("probe", f"run={folder}", "runtime.threads=1", code=65)
    assert not any(character.isdigit() for character in out)
    assert not list(folder.rglob("results.jsonl"))

"""Checkpoints are whole or absent; damage is always detected."""

from __future__ import annotations

import errno
import json
import random
import shutil
import threading

import pytest
import torch

from ldae.core.errors import CheckpointError, StorageError
from ldae.core.files import publish_folder, read_json, write_json, write_text
from ldae.engine.checkpoint import content_hash, list_checkpoints, newest, publish, verify


def tensors(value):
    return {"model": {"w": torch.full((500,), float(value))}, "optim": {"m": torch.arange(300.0)}}


def filled(root, steps, keep=2):
    for step in steps:
        publish(root, tensors(step), {"step": step, "epoch": 0}, keep)
    return root


def test_published_tensors_come_back(tmp_path):
    checkpoint = newest(filled(tmp_path / "c", [5]))
    assert checkpoint.step == 5
    assert torch.equal(checkpoint.tensors("model")["w"], torch.full((500,), 5.0))


def test_the_oldest_go_and_two_always_stay(tmp_path):
    filled(tmp_path / "c", [1, 2, 3, 4], keep=3)
    assert [p.name for p in list_checkpoints(tmp_path / "c")] == ["step-000000004", "step-000000003", "step-000000002"]
    filled(tmp_path / "d", [1, 2, 3], keep=1)
    assert len(list_checkpoints(tmp_path / "d")) == 2


def test_every_one_of_200_flipped_bits_is_detected(tmp_path):
    root, chance = filled(tmp_path / "c", [1]), random.Random(0)
    checkpoint = list_checkpoints(root)[0]
    files = [p for p in checkpoint.iterdir() if p.suffix == ".safetensors"]
    detected = 0
    for _ in range(200):
        path = chance.choice(files)
        good = path.read_bytes()
        raw = bytearray(good)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        path.write_bytes(raw)
        try:
            verify(checkpoint)
        except CheckpointError:
            detected += 1
        path.write_bytes(good)
    assert detected == 200
    verify(checkpoint)


@pytest.mark.parametrize("size", range(0, 1200, 100))
def test_a_truncated_newest_gives_way_to_the_one_before(tmp_path, size, capsys):
    root = filled(tmp_path / "c", [1, 2])
    path = list_checkpoints(root)[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert newest(root).step == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert any(p.name.startswith(".bad-step-000000002") for p in root.iterdir())


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"format": "ldae-checkpoint-1", "step": 2, "files": {}}'])
def test_a_damaged_manifest_gives_way_to_the_one_before(tmp_path, content):
    root = filled(tmp_path / "c", [1, 2])
    manifest = list_checkpoints(root)[0] / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    assert newest(root).step == 1


def test_no_whole_checkpoint_is_an_error_never_a_fresh_start(tmp_path):
    root = filled(tmp_path / "c", [1])
    (list_checkpoints(root)[0] / "optim.safetensors").unlink()
    for _ in range(2):  # also after it was set aside
        with pytest.raises(CheckpointError, match="whole"):
            newest(root)
    assert newest(tmp_path / "never") is None


def test_looking_without_setting_aside_changes_nothing(tmp_path):
    root = filled(tmp_path / "c", [1, 2])
    (list_checkpoints(root)[0] / "manifest.json").write_text("{}")
    before = sorted(p.name for p in root.rglob("*"))
    assert newest(root, set_aside=False).step == 1
    assert sorted(p.name for p in root.rglob("*")) == before


def test_a_pickle_in_a_checkpoints_place_is_never_opened(tmp_path):
    root = filled(tmp_path / "c", [1])
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    path = list_checkpoints(root)[0] / "model.safetensors"
    torch.save(Bomb(), path)
    manifest = read_json(path.parent / "manifest.json")
    from ldae.core.files import sha256

    manifest["files"]["model.safetensors"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(path.parent / "manifest.json", {**manifest, "own": content_hash(manifest)})
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        verify(path.parent).tensors("model")
    assert not canary.exists()


def test_a_failed_write_leaves_the_last_one_and_no_rubbish(tmp_path, monkeypatch):
    root = filled(tmp_path / "c", [1])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ldae.core.files.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        publish(root, tensors(2), {"step": 2, "epoch": 0}, 2)
    assert [p.name for p in root.iterdir()] == ["step-000000001"]
    assert newest(root).step == 1


def test_a_folder_appears_all_at_once_or_not_at_all(tmp_path):
    with publish_folder(tmp_path / "f") as inside:
        (inside / "a").write_text("1")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f" / "a").read_text() == "1"
    with pytest.raises(StorageError, match="No such file"), publish_folder(tmp_path / "g") as inside:
        (inside / "a" / "no such folder").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_text_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "t"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="No such file"):
        write_text(path, "x")


@pytest.mark.case("A18", "a kill while an old checkpoint is removed")
def test_a_removal_that_is_cut_short_leaves_no_part_of_a_checkpoint(tmp_path, monkeypatch):
    root = filled(tmp_path / "c", [1, 2])

    def killed(path, **_):
        if path.exists():  # the old checkpoint
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(root, tensors(3), {"step": 3, "epoch": 0}, 2)
    monkeypatch.undo()
    assert [verify(path).step for path in list_checkpoints(root)] == [3, 2]


@pytest.mark.case("A14", "checkpoints are read while others replace them")
def test_the_newest_is_read_while_a_run_replaces_them(tmp_path):
    root, done = filled(tmp_path / "c", [0, 1]), threading.Event()

    def write():
        step = 2
        while not done.is_set():
            publish(root, tensors(step), {"step": step, "epoch": 0}, 2)
            step += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(60):
            checkpoint = newest(root, set_aside=False)
            assert checkpoint.hash
            assert checkpoint.step >= 1
    finally:
        done.set()
        thread.join()


def test_what_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    root = filled(tmp_path / "c", [1, 2])

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr("ldae.engine.checkpoint.sha256", forbidden)
    with pytest.raises(StorageError, match=r"reading .* failed: Permission denied"):
        newest(root)
    monkeypatch.undo()
    assert newest(root).step == 2


def test_json_that_is_none_is_refused(tmp_path):
    (tmp_path / "a").write_text(json.dumps([1]))
    (tmp_path / "b").write_bytes(b"\xff\xfe{")
    for name in "abc":
        with pytest.raises(CheckpointError):
            read_json(tmp_path / name)


def test_every_flipped_bit_of_a_manifest_is_detected(tmp_path):
    path = list_checkpoints(filled(tmp_path / "c", [1]))[0] / "manifest.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            verify(path.parent)
        except CheckpointError:
            continue
        assert json.loads(path.read_text()) == json.loads(whole)  # a blank became another


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    path = list_checkpoints(filled(tmp_path / "c", [1]))[0] / "manifest.json"
    manifest = read_json(path)
    del manifest["own"]
    write_json(path, manifest)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify(path.parent)
    write_json(path, {**manifest, "format": "ldae-checkpoint-1"})
    assert verify(path.parent).step == 1

"""Files are whole or absent, verified when they are read, and a failed write is one sentence."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat

import pytest
import torch

from ldae.core.errors import CheckpointError, OutputError, StorageError
from ldae.core.files import (
    has_intact_tensors,
    load_tensors,
    read_sealed_json,
    remove_folder,
    remove_temporary,
    replace_folder,
    save_tensors,
    sha256,
    wrap_error,
    write_sealed_json,
    write_text,
)

TENSORS = {"mean": torch.arange(3.0), "fitted": torch.tensor(True)}
METADATA = {"format": "f", "spec": '{"part": "a"}', "data": "0123", "image_shape": "[3, 8, 8]"}


def flip_bits(path, stride):
    """Flip every bit, or one in `stride`, of a file, one at a time, and restore the file at the end."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), stride):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        yield
    path.write_bytes(whole)


@pytest.mark.case("A3", "flipped bits in a kept file of tensors")
def test_no_flipped_bit_of_a_tensor_file_changes_what_is_read(tmp_path):
    path, passed = tmp_path / "t.safetensors", 0
    save_tensors(path, TENSORS, METADATA)
    for _ in flip_bits(path, stride=5):
        try:
            tensors = load_tensors(path)
        except CheckpointError:
            continue
        passed += 1
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert passed <= 8 * len("sha256")  # the name of the hash: the file then counts as another program's
    assert load_tensors(path).keys() == TENSORS.keys()


@pytest.mark.case("A3", "flipped bits in a kept JSON file")
def test_no_flipped_bit_of_a_json_file_changes_what_is_read(tmp_path):
    path, value = tmp_path / "v.json", {"bad": [["a.png", "cut"]], "fingerprint": "0f", "images": 3}
    write_sealed_json(path, value)
    for _ in flip_bits(path, stride=3):
        try:
            content = read_sealed_json(path)
        except CheckpointError:
            continue
        assert value.items() <= content.items()
    assert read_sealed_json(path) == value


def test_files_of_other_programs_and_of_earlier_versions_are_read(tmp_path):
    save_tensors(tmp_path / "t.safetensors", TENSORS, sealed=False)
    assert load_tensors(tmp_path / "t.safetensors").keys() == TENSORS.keys()
    (tmp_path / "v.json").write_text(json.dumps({"images": 3}))
    assert read_sealed_json(tmp_path / "v.json") == {"images": 3}


@pytest.mark.case("A20", "the same tensors saved again: the same bytes")
def test_the_same_tensors_give_the_same_file(tmp_path):
    hashes = set()
    for k in range(8):
        save_tensors(tmp_path / str(k), TENSORS, METADATA)
        hashes.add(sha256(tmp_path / str(k)))
    assert len(hashes) == 1


def test_a_damaged_file_of_the_cache_is_made_again_with_a_warning(tmp_path):
    path = tmp_path / "t.safetensors"
    assert not has_intact_tensors(path)
    save_tensors(path, TENSORS)
    assert has_intact_tensors(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.warns(UserWarning, match=r"t\.safetensors is damaged .*it is made again"):
        assert not has_intact_tensors(path)


@pytest.mark.case("A15", "permissions of files of tensors")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "t", TENSORS)
        write_text(tmp_path / "u", "")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "tu"} == {0o644}


FAILURES = {
    OutputError: (errno.EROFS, errno.EACCES, errno.EPERM),
    StorageError: (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT),
}


@pytest.mark.case("A9", "errors of the operating system at a write")
@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, numbers in FAILURES.items() for n in numbers])
def test_every_failed_write_is_one_sentence(tmp_path, monkeypatch, kind, number):
    def failing(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(kind, match=rf"writing {tmp_path}/t failed: {os.strerror(number)}; "):
        write_text(tmp_path / "t", "")
    with pytest.raises(kind, match=os.strerror(number)):
        save_tensors(tmp_path / "t", TENSORS)
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_worker_process_is_reported_by_its_last_line():
    text = "Caught OSError in DataLoader worker process 0.\nTraceback ...\nOSError: [Errno 116] Stale file handle"
    fault = wrap_error(OSError(text))
    assert (fault.code, str(fault).count("\n")) == (74, 0)
    assert "Stale file handle" in str(fault)


@pytest.mark.case("A18", "a kill while a folder is removed or replaced")
def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    for name in ("a", "b", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "b")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".tmp-")] == ["b"]
    assert (tmp_path / "b" / "file").read_text() == "new"
    remove_temporary(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # they may be another process's
    remove_temporary(tmp_path, age=0)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]

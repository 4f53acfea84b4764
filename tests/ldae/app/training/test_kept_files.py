"""Files that a tool keeps and reads again: a flipped bit is detected, and a file that can be recomputed is."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time

import pytest
from helpers import SHORT, complete, losses, status

from ldae.core.files import remove_folder
from ldae.engine import train_state
from ldae.engine.run_folder import RunFolder
from ldae.export.encoder import load_run

WORDS = (*SHORT, "train.steps=3", "train.precision=fp32", "monitor.num_evals=0", "runtime.progress=false")


def flip(path, at=-3):
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after its last step."""
    from ldae.app.training.pretrain import main

    folder = tmp_path_factory.mktemp("kept") / "run"
    main(complete("pretrain", [f"out={folder}", *WORDS]))
    (folder / "status.json").unlink()
    return folder


@pytest.mark.case("A3", "a flipped bit in a run's tokenizer, data.json, config.json; run again")
@pytest.mark.parametrize("name", ["tokenizer.safetensors", "data.json", "config.json"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_damaged_file_of_a_run_is_65_and_named(begun, tmp_path, in_process, name, checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    flip(folder / name, at=-10)
    if not checkpoints:  # stopped before the first: the hash is stored nowhere else
        shutil.rmtree(folder / "checkpoints")
    code, message = in_process("pretrain", f"out={folder}", *WORDS)
    assert (code, f"{folder / name} is damaged" in message) == (65, True), message


def test_a_tokenizer_of_another_run_is_refused(begun, tmp_path, in_process):
    folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(begun, folder)
    assert in_process("pretrain", f"out={other}", *WORDS, "tokenizer.scaling=each", "train.steps=1") == (0, "")
    shutil.copy(other / "tokenizer.safetensors", folder)
    code, message = in_process("pretrain", f"out={folder}", *WORDS)
    assert (code, "tokenizer.safetensors is damaged or another file" in message) == (65, True), message


@pytest.mark.case("A3", "a flipped bit in a tokenizer of the cache")
def test_a_damaged_tokenizer_of_the_cache_is_fitted_again(begun, tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    assert in_process("pretrain", f"out={tmp_path / 'a'}", *WORDS) == (0, "")
    (kept,) = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.safetensors")
    whole = kept.read_bytes()
    flip(kept)
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"tokenizer\.safetensors is damaged .*it is made again"):
        assert in_process("pretrain", f"out={tmp_path / 'b'}", *WORDS) == (0, "")
    assert "fitting the tokenizer" in capsys.readouterr().err
    assert losses(tmp_path / "a") == losses(tmp_path / "b") == losses(begun)
    assert kept.read_bytes() == whole  # and every fit gives the same file


@pytest.mark.case("A6", "the labels of kept features changed")
def test_changed_labels_of_a_feature_bank_are_noticed(begun, tmp_path, in_process, capsys):
    argv = (f"run={begun}", "protocols=[knn]", "baselines=false", "layers=[2]", f"out={tmp_path}", "runtime.threads=1")
    assert in_process("probe", *argv) == (0, "")
    output = capsys.readouterr().out
    whole = {path: path.read_bytes() for path in (tmp_path / "features").glob("*/labels.npy")}
    for path, raw in whole.items():
        path.write_bytes(raw[:128] + raw[128:][::-1])  # after the header
    assert in_process("probe", *argv) == (0, "")
    assert capsys.readouterr().out == output
    assert {path: path.read_bytes() for path in whole} == whole


@pytest.mark.case("C18", "a run that fails before its first step")
def test_a_run_that_fails_before_its_first_step_leaves_no_folder(tmp_path, in_process):
    (tmp_path / "there").mkdir()
    for out in ("new/run", "there"):
        code, _ = in_process("pretrain", "data=imagefolder", "data.root=/nowhere", f"out={tmp_path / out}")
        assert code == 65
    code, message = in_process("pretrain", *WORDS, "train.batch=100000", f"out={tmp_path / 'new' / 'run'}")
    assert (code, "exceeds" in message) == (2, True)  # after the tokenizer is there
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "there",
        "there/.lock",
        "there/status.json",
    ]


def test_a_failing_rerun_keeps_the_run(begun, tmp_path, in_process):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    before = sorted(p.name for p in folder.rglob("*"))
    assert in_process("pretrain", f"out={folder}", *WORDS, "optim.blr=0.5")[0] == 2
    assert sorted(p.name for p in folder.rglob("*")) == sorted([*before, "status.json"])


@pytest.mark.case("A18", "what killed processes left, at the next start")
def test_what_killed_processes_left_is_removed_at_the_next_start(begun, tmp_path, in_process, cache):
    folder, old = tmp_path / "run", cache / "latents" / ".tmp-0123-abcd"
    shutil.copytree(begun, folder)
    left = [folder / ".tmp-01-status.json", folder / "checkpoints" / ".tmp-step-000000001-ab", old]
    for path in left:
        path.mkdir(parents=True) if path.suffix != ".json" else path.write_text("")
    os.utime(old, (0, 0))
    assert in_process("pretrain", f"out={folder}", *WORDS) == (0, "")
    assert not any(path.exists() for path in left)


@pytest.mark.case("A9", "EROFS, EACCES, ESTALE, EMFILE at a checkpoint")
@pytest.mark.parametrize(
    ("number", "code"), [(errno.EROFS, 73), (errno.EACCES, 73), (errno.ESTALE, 74), (errno.EMFILE, 74)]
)
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_status(
    tmp_path, in_process, monkeypatch, number, code
):
    sync = os.fsync

    def failing(handle):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    exit_code, message = in_process("pretrain", f"out={tmp_path / 'r'}", *WORDS)
    assert (exit_code, os.strerror(number) in message) == (code, True), message
    assert status(tmp_path / "r") == {"state": "failed", "step": 0, "code": code, "message": message}


@pytest.mark.case("A9", "the run folder is moved away")
def test_a_run_whose_folder_is_moved_away_is_74(tmp_path, in_process, monkeypatch):
    folder = tmp_path / "r"
    publish = train_state.publish

    def moved(*given):
        if folder.exists():
            folder.rename(tmp_path / "elsewhere")
        return publish(*given)

    monkeypatch.setattr(train_state, "publish", moved)
    code, message = in_process("pretrain", f"out={folder}", *WORDS, "train.checkpoint_every=1")
    assert code == 74, message


@pytest.mark.case("A13", "two runs that need the same tokenizer")
def test_a_second_run_waits_for_the_tokenizer_that_a_first_one_makes(begun, tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "one"))
    assert in_process("pretrain", f"out={tmp_path / 'a'}", *WORDS) == (0, "")
    (kept,) = (tmp_path / "one" / "tokenizers").iterdir()
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "two"))
    first, held = RunFolder(tmp_path / "two" / "tokenizers" / kept.name), threading.Event()

    def make():
        first.acquire()
        held.set()
        while not (tmp_path / "b" / "data.json").exists():  # what comes next is the tokenizer
            time.sleep(0.05)
        time.sleep(2.5)
        shutil.copy(kept / "tokenizer.safetensors", first.path)
        first.release()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    held.wait()
    capsys.readouterr()
    assert in_process("pretrain", f"out={tmp_path / 'b'}", *WORDS) == (0, "")
    thread.join()
    stderr = capsys.readouterr().err
    assert f"waiting for another run, which is writing {first.path}" in stderr
    assert "fitting" not in stderr
    assert losses(tmp_path / "b") == losses(begun)


@pytest.mark.case("A14", "an encoder is read from a run that goes on training")
def test_an_encoder_is_read_from_a_run_that_goes_on(begun, tmp_path):
    """Its checkpoints are replaced while they are read."""
    folder, done = tmp_path / "run", threading.Event()
    shutil.copytree(begun, folder)
    root = folder / "checkpoints"

    def train():
        (old,) = root.glob("step-*")
        step = 4
        while not done.wait(0.1):
            new = root / f"step-{step:09d}"
            shutil.copytree(old, root / f".tmp-{new.name}")
            (root / f".tmp-{new.name}").rename(new)
            remove_folder(old)
            old, step = new, step + 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert {load_run(folder).checkpoint.step for _ in range(8)} == {3}
    finally:
        done.set()
        thread.join()


@pytest.mark.case("A16", "out=0123")
def test_a_name_of_digits_is_a_name(tmp_path, in_process, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_process("pretrain", "out=0123", *WORDS, "train.steps=1") == (0, "")
    assert status(tmp_path / "0123")["state"] == "done"

"""Compiled code outlives the process: archives are used, and only within what their hash covers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
from torch import nn

from ldae.core.files import has_intact_tensors, remove_temporary
from ldae.engine import compiled_code
from ldae.engine.compiled_code import FOLDER, CodeArchive

STEP = """
import sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from ldae.engine.blocks import prepare_blocks
from ldae.engine.compiled_code import CodeArchive

torch.set_num_threads(1)
torch.manual_seed(0)
block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
block.compiles = True
archive = CodeArchive.restored(Path(sys.argv[1]), [block])
prepare_blocks([block], compiled=True, recomputed=False)
loss = block(torch.ones(4, 8)).sum()
loss.backward()
archive.save()
print(loss.item().hex(), counters["inductor"]["fxgraph_cache_miss"])
"""
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from ldae.engine.compiled_code import CodeArchive

archive = CodeArchive.restored(Path(sys.argv[1]), [torch.nn.Linear(2, 2)])
(archive.folder / "more").write_bytes(b"new" * 1000)
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
archive.save()
"""
LIVING = """
import sys
from ldae.engine.compiled_code import use_own_folder
print(use_own_folder().name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return a function that opens the archive of a network in the folder of a new process."""
    tag = compiled_code.torch.compiler.config.cache_key_tag

    def open_in(process, cache=tmp_path / "cache", network=None):
        folder = tmp_path / f"ldae-compiled-{process}"
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv(FOLDER, str(folder))
        return CodeArchive.restored(cache, [network or nn.Linear(2, 2)])

    yield open_in
    compiled_code.torch.compiler.config.cache_key_tag = tag


def put(archive, name="ab/code.so", content=b"machine code"):
    path = archive.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    archive.save()
    return path


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_second_start_compiles_nothing_and_computes_the_same(tmp_path):
    compiler, calls = tmp_path / "g++", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    known = {**os.environ, "CXX": str(compiler)}
    known.pop(FOLDER, None)
    starts = []
    for _ in range(2):
        calls.write_text("")
        command = [sys.executable, "-c", STEP, str(tmp_path / "cache")]
        done = subprocess.run(command, env=known, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        loss, misses = done.stdout.split()
        compilations = sum(".cpp" in line for line in calls.read_text().splitlines())
        starts.append((loss, int(misses), compilations))
    (loss, misses, compilations), second = starts
    assert misses > 0
    assert compilations > 0
    assert second == (loss, 0, 0)


def test_the_files_of_a_process_are_those_of_the_next(opened):
    path = put(opened("first"))
    put(opened("first"), "locks/code.lock")
    again = opened("second")
    assert (again.folder / path.relative_to(path.parents[1])).read_bytes() == b"machine code"
    assert not (again.folder / "locks").exists()


def test_processes_at_once_keep_the_files_of_both(opened):
    one, two = opened("one"), opened("two")
    put(one, "one")
    put(two, "two")
    assert {path.name for path in opened("three").folder.iterdir()} == {"one", "two"}


def test_another_network_thread_count_or_compiler_has_another_archive(opened, monkeypatch):
    put(opened("first"))
    assert not list(opened("second", network=nn.Linear(3, 2)).folder.iterdir())
    threads = compiled_code.torch.get_num_threads()
    try:
        compiled_code.torch.set_num_threads(threads + 1)
        assert not list(opened("third").folder.iterdir())
    finally:
        compiled_code.torch.set_num_threads(threads)
    monkeypatch.setenv("CXX", sys.executable)
    assert not list(opened("fourth").folder.iterdir())


def test_networks_of_one_process_do_not_get_each_others_files(opened):
    put(opened("process"), "of_one")
    put(opened("process", network=nn.Linear(3, 2)), "of_two")
    assert [path.name for path in opened("next", network=nn.Linear(3, 2)).folder.iterdir()] == ["of_two"]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_archive_is_ignored_and_written_anew(opened, damage):
    archive = opened("first")
    put(archive)
    archive.path.write_bytes(damage(archive.path.read_bytes()))
    again = opened("second")
    assert not list(again.folder.iterdir())
    put(again)
    assert has_intact_tensors(again.path)
    assert list(opened("third").folder.rglob("code.so"))


def test_a_killed_writer_leaves_the_archive_as_it_was(opened):
    archive = opened("first")
    put(archive)
    before = archive.path.read_bytes()
    known = {key: value for key, value in os.environ.items() if key != FOLDER}
    command = [sys.executable, "-c", KILLED, str(archive.path.parents[1])]
    known["OMP_NUM_THREADS"] = str(compiled_code.torch.get_num_threads())
    assert subprocess.run(command, env=known, capture_output=True).returncode == -signal.SIGKILL
    assert archive.path.read_bytes() == before
    remove_temporary(archive.path.parent, age=0)  # as every session does
    assert list(archive.path.parent.iterdir()) == [archive.path]


def test_the_folder_of_a_killed_process_goes_with_the_next_start_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    known = {key: value for key, value in os.environ.items() if key != FOLDER} | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", LIVING]
    processes = [
        subprocess.Popen(command, env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    killed, living = (process.stdout.readline().strip() for process in processes)
    processes[0].kill()
    processes[0].wait()
    monkeypatch.setattr(compiled_code.tempfile, "gettempdir", lambda: str(tmp_path))
    compiled_code.remove_abandoned()  # too young: it may not be locked yet
    assert {path.name for path in tmp_path.iterdir()} == {killed, living}
    compiled_code.remove_abandoned(least_age=0)
    assert [path.name for path in tmp_path.iterdir()] == [living]
    assert processes[1].communicate()[0] == ""
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_no_failure(opened, tmp_path):
    (tmp_path / "file").write_text("")
    put(opened("process", cache=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_the_archive_of_another_user_is_not_read(opened):
    archive = opened("first")
    put(archive)
    os.chown(archive.path, 12345, -1)
    assert not list(opened("second").folder.iterdir())


def test_least_recently_used_archives_and_files_beyond_the_limit_go(opened, monkeypatch):
    monkeypatch.setattr(compiled_code, "MOST_ARCHIVES", 2)
    monkeypatch.setattr(compiled_code, "MOST_BYTES", 1500)
    archives = []
    for width in (2, 3, 4):
        archives.append(opened(f"process-{width}", network=nn.Linear(width, 2)))
        put(archives[-1], content=bytes(1000))
        os.utime(archives[-1].path, (width, width))
    assert [archive.path.exists() for archive in archives] == [False, True, True]
    put(opened("later", network=nn.Linear(4, 2)), "other", bytes(1000))
    assert len(list(opened("last", network=nn.Linear(4, 2)).folder.iterdir())) == 1


def test_a_folder_that_the_user_set_has_no_archive(monkeypatch, tmp_path, opened):
    opened("process")
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    assert CodeArchive.restored(tmp_path, [nn.Linear(2, 2)]) is None

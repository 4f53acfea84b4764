"""Compiled blocks: where what is compiled is kept, and for which instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from ldae.engine import blocks
from ldae.engine.blocks import CACHE, prepare_blocks

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")

COMPILED = """
import torch
from ldae.engine.blocks import prepare_blocks
from ldae.nn.blocks import Block

torch.set_num_threads(1)
torch.manual_seed(0)
block, x = Block(64, 2), torch.randn(4, 16, 64)
with torch.no_grad():
    plain = block(x)
    prepare_blocks([block], compiled=True, recomputed=False)
    torch.testing.assert_close(block(x), plain)
"""


@pytest.fixture
def tag():
    """What is put into keys is taken back."""
    with torch.compiler.config.patch(cache_key_tag="mine"):
        yield


def prepared():
    block = nn.Linear(2, 2)
    block.compiles = True
    prepare_blocks([block], compiled=True, recomputed=False)
    return Path(os.environ[CACHE])


def test_a_process_has_a_folder_of_its_own_though_torch_named_its_default(monkeypatch, tag):
    monkeypatch.delenv(CACHE, raising=False)
    command = "import os, torch; torch.optim.SGD([torch.ones(1)]); print(os.environ.get('TORCHINDUCTOR_CACHE_DIR', ''))"
    default = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv(CACHE, default or str(Path(tempfile.gettempdir(), "torchinductor_somebody")))
    folder = prepared()
    assert folder.name.startswith("ldae-compiled-")
    assert prepared() == folder


def test_a_folder_that_is_named_is_used_with_the_instruction_set_in_its_keys(monkeypatch, tmp_path, tag):
    monkeypatch.setenv(CACHE, str(tmp_path / "torchinductor_mine"))
    for _ in range(2):
        assert prepared() == tmp_path / "torchinductor_mine"
        assert torch.compiler.config.cache_key_tag == f"minecpu={torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits the vectors of x86")
def test_what_was_compiled_for_longer_vectors_is_not_taken(tmp_path):
    for limit in ("avx2", "default"):
        known = {**os.environ, CACHE: str(tmp_path), "ATEN_CPU_CAPABILITY": limit}
        done = subprocess.run([sys.executable, "-c", COMPILED], env=known, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_a_device_that_cannot_compile_gets_a_warning_and_plain_blocks(monkeypatch, tag, capsys):
    def fail(*_):
        raise RuntimeError("backend='inductor' raised:\nRuntimeError: Failed to find C compiler.")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    blocks._failure_on.cache_clear()
    try:
        assert "Failed to find C compiler); Triton needs" in blocks._failure_on(torch.device("cpu"))
    finally:
        blocks._failure_on.cache_clear()
    monkeypatch.setattr(blocks, "_obstacle", lambda networks: "fails on cuda:0 (no compiler)")
    block = nn.Linear(2, 2)
    block.compiles = True
    prepare_blocks([block], compiled=True, recomputed=False)
    assert block._compiled_call_impl is None
    assert "train.compile=true fails on cuda:0 (no compiler); blocks are not compiled" in capsys.readouterr().err

"""Compilation: the compiled parts, the folder of the results, the instruction set in their keys."""

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

from ldae.app.compose import compose, resolved
from ldae.app.session import Session
from ldae.app.training.plan import trainer_on
from ldae.denoisers.vit import ViTDenoiser
from ldae.engine import blocks
from ldae.engine.blocks import compiled_parts, prepare_blocks
from ldae.engine.compiled_code import FOLDER
from ldae.nn.blocks import Block, ConditionedBlock

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
    """Set a tag of cache keys and restore the previous one at the end."""
    with torch.compiler.config.patch(cache_key_tag="mine"):
        yield


def prepared():
    block = nn.Linear(2, 2)
    block.compiles = True
    prepare_blocks([block], compiled=True, recomputed=False)
    return Path(os.environ[FOLDER])


def test_a_process_has_a_folder_of_its_own_though_torch_named_its_default(monkeypatch, tag):
    monkeypatch.delenv(FOLDER, raising=False)
    command = "import os, torch; torch.optim.SGD([torch.ones(1)]); print(os.environ.get('TORCHINDUCTOR_CACHE_DIR', ''))"
    default = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv(FOLDER, default or str(Path(tempfile.gettempdir(), "torchinductor_somebody")))
    folder = prepared()
    assert folder.name.startswith("ldae-compiled-")
    assert prepared() == folder


def test_a_folder_that_is_named_is_used_with_the_instruction_set_in_its_keys(monkeypatch, tmp_path, tag):
    monkeypatch.setenv(FOLDER, str(tmp_path / "torchinductor_mine"))
    for _ in range(2):
        assert prepared() == tmp_path / "torchinductor_mine"
        assert torch.compiler.config.cache_key_tag == f"minecpu={torch.backends.cpu.get_cpu_capability()}"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits the vectors of x86")
def test_what_was_compiled_for_longer_vectors_is_not_taken(tmp_path):
    for limit in ("avx2", "default"):
        known = {**os.environ, FOLDER: str(tmp_path), "ATEN_CPU_CAPABILITY": limit}
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


def test_a_gpu_compiles_the_whole_network_unless_it_is_deep_or_its_blocks_are_to_be_apart():
    network = ViTDenoiser((16, 4, 4), (16, 4, 4), (4, 4), 16, 1, 1, 2)
    assert compiled_parts(network, whole=True) == [network]
    assert compiled_parts(network, whole=False) == list(network.blocks)
    deep = ViTDenoiser((16, 4, 4), (16, 4, 4), (4, 4), 16, 12, 13, 2)
    assert compiled_parts(deep, whole=True) == list(deep.blocks)
    assert compiled_parts(nn.Linear(2, 2), whole=True) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["experiment=ddpm/cifar10_cpu", "denoiser.channels=32"],
        pytest.param(["experiment=sr3/cifar10_cpu"], marks=pytest.mark.slow),
        ["experiment=ldae/cifar10_cpu", "denoiser=vit_64x4", "objective=with_pixels", "denoiser.keep=0.5"],
        ["experiment=mae/cifar10_cpu", "denoiser.width=32", "denoiser.heads=1"],
    ],
    ids=["unet", "conditional unet", "dropped tokens", "mae"],
)
def test_a_whole_network_is_one_graph_with_the_losses_of_plain_calls(argv):
    def losses(compiled):
        session = Session(resolved(compose("pretrain", [*argv, "train.batch=4", "train.compile=false"])))
        trainer, loader = trainer_on(session, 4, 16)
        batches = loader.batches(0)
        (module,) = trainer.modules.values()
        if compiled:
            module.network.compile(backend="aot_eager", fullgraph=True)
        return [float(next(iter(trainer.train_step(next(batches))[0].values()))) for _ in range(2)]

    assert losses(compiled=True) == pytest.approx(losses(compiled=False), rel=1e-5)


@pytest.mark.parametrize("block", [Block(32, 2), ConditionedBlock(32, 2, 16)], ids=["plain", "conditioned"])
def test_the_trace_of_a_block_has_no_parser_of_patterns(block):
    """einops 0.8.2 is traced with its parser, which takes longer than the block and stays as guards of every call."""
    tokens, cond = torch.randn(2, 9, 32), torch.randn(2, 16)
    traced = torch._dynamo.explain(block)(*([tokens] if isinstance(block, Block) else [tokens, cond]))
    assert traced.graph_break_count == 0
    assert not [guard for guard in traced.out_guards if "einops" in f"{guard.name} {guard.code_list}"]

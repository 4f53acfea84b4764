"""Precision `auto` on each device, also under limits; the precision of a resumed run; absent devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.engine.precision import multiplies_bf16, resolve_precision
from ldae.engine.runtime import resolve_device
from ldae.tokenizers.patch_linear import PatchPCA

ROOT = Path(__file__).parents[3]
LIMITED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="the kernel's list of instructions is read")
@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="oneDNN is limited")
def test_bf16_is_taken_where_the_kernel_lists_its_instructions():
    auto, flags = resolve_precision("auto", "cpu"), set(CPUINFO.read_text().split())
    assert auto.value == ("bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32")
    assert auto.value in str(auto)
    assert auto.reason in str(auto)


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
def test_under_a_limit_without_products_of_bf16_it_is_fp32(limit):
    """In a process of its own, as oneDNN reads the limit once; kNN takes no candidates in bf16 there."""
    code = "from ldae.engine.precision import resolve_precision as r; from linear_probe.knn import by_candidates as c\n"
    code += "from ldae.engine.runtime import describe_hardware as d\n"
    code += "print(r('auto', 'cpu')); print(r('bf16', 'cpu')); print(c(4096, 384, 20)); print(d())"
    env = {**os.environ, **LIMITED, "ONEDNN_MAX_CPU_ISA": limit, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    auto, bf16, candidates, hardware = done.stdout.splitlines()
    assert auto == "precision: fp32 (this processor has no native bf16 matmul)"
    assert bf16.startswith("precision: bf16 (as set); warning: this device emulates bf16")
    assert candidates == "False"
    assert "bf16" not in hardware
    assert "AMX" not in hardware
    assert ("AVX512" in hardware) <= (limit != "AVX2")


@pytest.mark.skipif(not CPUINFO.exists(), reason="the kernel's list of instructions is read")
@pytest.mark.parametrize("limit", ["AVX512_CORE_BF16", "DEFAULT"])
def test_the_hardware_is_named_by_its_fastest_products(limit):
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "PYTHONPATH": str(ROOT)}
    code = "from ldae.engine.runtime import instruction_set as i; print(i())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    flags = set(CPUINFO.read_text().split())
    assert ("with AMX" in done.stdout) == ("amx_bf16" in flags and limit == "DEFAULT")
    assert ("with bf16" in done.stdout) == (bool(flags & {"avx512_bf16", "bf16"}) and "with AMX" not in done.stdout)


@pytest.mark.parametrize("saved", ["fp32", "bf16"])
def test_a_resumed_run_keeps_its_precision(saved):
    precision = resolve_precision("auto", "cpu", saved)
    assert (precision.value, precision.reason) == (saved, "as this run began")
    assert precision.emulated == (saved == "bf16" and not multiplies_bf16("cpu"))


@pytest.mark.parametrize("given", ["fp32", "bf16"])
def test_what_is_set_is_taken(given):
    assert resolve_precision(given, "cpu", saved="fp32").value == given


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match=r"train\.precision='fp16' is none of: auto, fp32, bf16"):
        resolve_precision("fp16", "cpu", key="train.precision")


def test_mps_is_fp32():
    assert str(resolve_precision("auto", "mps")) == "precision: fp32 (the default on mps)"


@pytest.mark.parametrize(
    ("name", "there", "sentence"),
    [
        ("mps", torch.backends.mps.is_available(), "device='mps' is not there: it needs .*; use device=cpu"),
        ("cuda", torch.cuda.is_available(), "device='cuda' is not there: torch sees no CUDA device; use device=cpu"),
    ],
)
def test_a_device_is_accepted_where_torch_has_it(name, there, sentence):
    if there:
        assert resolve_device(name) == name
    else:
        with pytest.raises(ConfigError, match=sentence):
            resolve_device(name)


def test_a_tokenizer_moves_to_a_device_without_float64():
    """As on mps, where conversions of float64 raise TypeError. The eigenvalues stay on the CPU, the rest is moved."""
    tokenizer = PatchPCA((3, 8, 8), patch=4, d=8)
    tokenizer.fit(iter([2 * torch.rand(40, 3, 8, 8) - 1]))
    eigenvalues, moved = tokenizer.eigenvalues.clone(), []

    def to_mps(x):
        if x.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        moved.append(x)
        return x.clone()

    tokenizer._apply(to_mps)
    assert len(moved) == len([x for x in tokenizer.state_dict().values() if x.dtype != torch.float64]) > 0
    assert torch.equal(tokenizer.eigenvalues, eigenvalues)
    tokenizer.double()
    assert tokenizer.scale.dtype == tokenizer.eigenvalues.dtype == torch.float64

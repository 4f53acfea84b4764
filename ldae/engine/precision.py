"""Precision of matrix products: native support of bf16 by a device, and the choice of `auto`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ldae.core.errors import ConfigError

PrecisionName = Literal["fp32", "bf16"]
PrecisionSetting = Literal["auto", "fp32", "bf16"]
SETTINGS = ("auto", "fp32", "bf16")
SLOWDOWN = 14  # time of a training step in emulated bf16 on a CPU divided by that in fp32 (docs/scaling.md)

# environment variables that limit oneDNN's instruction set, and their values with products of bf16 but without AMX, and
# without products of bf16
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
BELOW_AMX = ("avx512_core_bf16", "avx512_core_fp16")
WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")


@dataclass(frozen=True)
class Precision:
    """Precision of the networks' matrix products; weights, tokenizers and losses are fp32.

    Attributes:
        value: `fp32` or `bf16`.
        reason: clause with the reason of the choice.
        emulated: whether the device emulates the precision, slower than fp32.
    """

    value: PrecisionName
    reason: str
    emulated: bool = False

    def __str__(self) -> str:
        if not self.emulated:
            return f"precision: {self.value} ({self.reason})"
        return (
            f"precision: {self.value} ({self.reason}); warning: this device emulates bf16, a step takes about "
            f"{SLOWDOWN} times as long as in fp32 on a CPU"
        )


def resolve_precision(setting: str, device: str, saved: str | None = None, key: str = "precision") -> Precision:
    """Return the precision to compute in.

    Args:
        setting: `auto`, `fp32` or `bf16`. `auto` is the saved precision if there is one, else bf16 where the device
            multiplies it natively (not on mps, where autocast to bf16 needs macOS 14 and was not measured), else fp32.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        saved: `fp32` or `bf16` of the run that is resumed, or None.
        key: name of the setting, for the error.

    Raises:
        ConfigError: the setting is none of the three.
    """
    if setting not in SETTINGS:
        raise ConfigError(key, setting, f"is none of: {', '.join(SETTINGS)}")
    device_type = torch.device(device).type
    native = multiplies_bf16(device)
    if setting == "bf16" or (setting == "auto" and saved == "bf16"):
        reason = "as this run began" if setting == "auto" else "as set"
        return Precision("bf16", reason, not native and device_type != "mps")
    if setting == "fp32" or saved == "fp32":
        return Precision("fp32", "as this run began" if setting == "auto" else "as set")
    if device_type == "mps":
        return Precision("fp32", "the default on mps")
    name = "GPU" if device_type == "cuda" else "processor"
    if native:
        return Precision("bf16", f"this {name} multiplies it natively")
    return Precision("fp32", f"this {name} has no native bf16 matmul")


def multiplies_bf16(device: str) -> bool:
    """Return whether a device has instructions for products of bf16, and torch uses them.

    On a CPU: AVX512-BF16 or AMX-BF16 on x86, the bf16 extension on ARM under Linux, each through oneDNN, and no lower
    limit on oneDNN's instruction set in the environment. `ATEN_CPU_CAPABILITY` does not limit matrix products.
    """
    device_type = torch.device(device).type
    if device_type == "cuda":
        with torch.cuda.device(torch.device(device)):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu" or not torch.backends.mkldnn.is_available() or _is_onednn_limited():
        return False
    flags = _cpu_flags()
    if platform.machine().lower() in ("aarch64", "arm64"):
        return sys.platform == "linux" and "bf16" in flags
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def multiplies_tiles() -> bool:
    """Return whether this CPU multiplies bf16 in tiles, by AMX: several times as fast as by AVX512-BF16."""
    return multiplies_bf16("cpu") and "amx_bf16" in _cpu_flags() and _onednn_limit() not in BELOW_AMX


def _onednn_limit() -> str:
    return next((os.environ[name] for name in ONEDNN_LIMITS if os.environ.get(name)), "").lower()


def _is_onednn_limited() -> bool:
    if _onednn_limit() in WITHOUT_BF16:
        return True
    query = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", None)
    return query is not None and not query()  # a limit set otherwise; torch reports only those below AVX512


def _cpu_flags() -> set[str]:
    """Return the processor's instruction set extensions, from torch or else from the kernel."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    flags = {name for name, value in capabilities.items() if value is True}
    if flags:
        return flags
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}

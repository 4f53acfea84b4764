"""Device, threads, memory allocator, and the hardware's description."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import torch

from ldae.core.errors import ConfigError
from ldae.engine.precision import multiplies_bf16, multiplies_tiles

# options of glibc's mallopt; a step is up to 20 % faster if freed memory is not returned to the system
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks of memory; do nothing on other systems. Call it before the first tensor."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20)):
        libc.mallopt(option, value)


def set_threads(n: int) -> None:
    """Set the number of threads of matrix products; 0 keeps torch's default."""
    if n:
        torch.set_num_threads(n)


def resolve_device(name: str) -> str:
    """Return the device of a setting; for `auto`, `cuda` if available, else `cpu`.

    Raises:
        ConfigError: the device is unknown or not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device", name, "is no device; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError("device", name, "is not supported; use auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        built = "macOS 14 or newer on an Apple GPU" if torch.backends.mps.is_built() else "a build of torch for macOS"
        raise ConfigError("device", name, f"is not there: it needs {built}; use device=cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", name, "is not there: torch sees no CUDA device; use device=cpu")
    return name


def describe_hardware(device: str = "auto") -> str:
    """Return the name of the GPU or processor, the latter with the instructions in use and its number of threads.

    Args:
        device: type of the device; `auto` for the GPU if there is one.
    """
    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    threads = torch.get_num_threads()
    return f"{model}, {instruction_set()}, {threads} thread{'s' if threads > 1 else ''}"


def instruction_set() -> str:
    """Return the instructions that torch uses on this CPU, e.g. `AVX2`, `AVX512 with bf16` or `AVX512 with AMX`.

    `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` limit them.
    """
    name = torch.backends.cpu.get_cpu_capability()
    name = platform.machine() if name == "DEFAULT" else name
    if multiplies_tiles():
        return f"{name} with AMX"
    return f"{name} with bf16" if multiplies_bf16("cpu") else name


def peak_gib() -> float:
    """Return the peak memory of this process in GiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):  # not Linux; getrusage also counts memory from before exec
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

"""The machine: threads, the allocator, the device."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import torch

from ldae.core.errors import ConfigError

# glibc's mallopt: keep freed memory instead of returning it to the system at every step (up to 20 % faster).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Makes glibc reuse large blocks, on Linux; elsewhere nothing happens. Call it before tensors are made."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20)):
        libc.mallopt(option, value)


def use_threads(n: int) -> None:
    """Threads of this process's matrix products; 0 leaves torch's own choice."""
    if n:
        torch.set_num_threads(n)


def pick_device(name: str) -> str:
    """Return the device that a setting names; for `auto`, `cuda` where there is one, else `cpu`.

    Raises:
        ConfigError: the device is unknown, or not on this machine.
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
    """Return the name of the processor or card that figures are measured on.

    Args:
        device: type of the device; `auto` for the card where there is one.
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
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def peak_gib() -> float:
    """GiB of memory that this process had at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):  # no Linux; getrusage also counts what was there before exec
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

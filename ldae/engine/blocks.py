"""Compilation and activation checkpointing of the blocks of networks, and their eval mode."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CACHE = "TORCHINDUCTOR_CACHE_DIR"
_COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch.compile chooses it


def prepare_blocks(networks: Iterable[nn.Module], compiled: bool, recomputed: bool) -> None:
    """Compile or checkpoint every module with an attribute `compiles`, in place; results and names stay the same.

    Args:
        networks: networks of the blocks.
        compiled: whether torch.compile compiles each block; a warning instead where it cannot: without a C++ compiler
            on a CPU, or without what Triton needs on a GPU.
        recomputed: whether the backward pass recomputes the activations in a block (arXiv 1604.06174).
    """
    networks = list(networks)
    if compiled:
        _use_own_compile_cache()
        if obstacle := _obstacle(networks):
            print(f"warning: train.compile=true {obstacle}; blocks are not compiled", file=sys.stderr)
            compiled = False
    blocks: list[Any] = [m for network in networks for m in network.modules() if hasattr(m, "compiles")]
    for block in blocks:
        if recomputed:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()


def _obstacle(networks: Iterable[nn.Module]) -> str:
    """Return why torch.compile cannot compile networks for their devices; empty if it can."""
    devices = {p.device for network in networks for p in network.parameters()}
    if any(device.type == "cpu" for device in devices) and shutil.which(_COMPILER) is None:
        return f"needs a C++ compiler ({_COMPILER})"
    failures = (_failure_on(device) for device in sorted(devices, key=str) if device.type == "cuda")
    return next(filter(None, failures), "")


@functools.cache
def _failure_on(device: torch.device) -> str:
    """Return why the compilation of one operation for a device fails; empty if it succeeds.

    Triton needs a C compiler and Python's headers (Python.h) besides the GPU's driver; a machine may have none of them.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of many types: the compiler's, Triton's, the operating system's
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
        reason = lines[0].strip().rstrip(".") if lines else type(error).__name__
        return f"fails on {device} ({reason}); Triton needs a C compiler and Python's headers"
    return ""


def _use_own_compile_cache() -> None:
    """Give torch.compile a cache folder of this process, unless the user set $TORCHINDUCTOR_CACHE_DIR.

    The default folder is common to all processes, and a process killed during a compilation leaves a truncated file,
    on which every later process fails. In a folder that the user set, torch's keys leave out the instruction set:
    code for vectors of another length computes NaN or writes past the end of memory, so the set joins the key.
    """
    if _is_default_cache(os.environ.get(CACHE)):
        os.environ[CACHE] = tempfile.mkdtemp(prefix="ldae-compiled-")
        atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
    tag = f"cpu={torch.backends.cpu.get_cpu_capability()}"
    if tag not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += tag


def _is_default_cache(folder: str | None) -> bool:
    """Return whether torch chose the folder: with the first optimizer it writes its default into the environment."""
    if folder is None:
        return True
    return Path(folder).parent == Path(tempfile.gettempdir()) and Path(folder).name.startswith("torchinductor_")


@contextlib.contextmanager
def eval_mode(networks: Any) -> Iterator[None]:
    """Put networks into eval mode for the block, and restore their modes after it."""
    modes = [(network, network.training) for network in networks]
    for network, _ in modes:
        network.eval()
    try:
        yield
    finally:
        for network, is_training in modes:
            network.train(is_training)

"""How networks are run: their blocks compiled, or without keeping activations; in eval mode for a while."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

CACHE = "TORCHINDUCTOR_CACHE_DIR"
_COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # the one that torch.compile calls


def prepare_blocks(networks: Iterable[nn.Module], compiled: bool, recomputed: bool) -> None:
    """Sets up every module that says `compiles`, in place; names of parameters and what is computed stay as they are.

    Args:
        compiled: by torch.compile, each block for itself; not on a CPU without a C++ compiler, which is said.
        recomputed: a block's activations are not kept for the backward pass but computed again (arXiv 1604.06174).
    """
    networks = list(networks)
    if compiled and not _can_compile(networks):
        print(
            f"warning: train.compile=true needs a C++ compiler ({_COMPILER}); blocks are not compiled", file=sys.stderr
        )
        compiled = False
    if compiled:
        _compile_apart()
    blocks: list[Any] = [m for network in networks for m in network.modules() if hasattr(m, "compiles")]
    for block in blocks:
        if recomputed:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()


def _can_compile(networks: Iterable[nn.Module]) -> bool:
    on_cpu = any(p.device.type == "cpu" for network in networks for p in network.parameters())
    return not on_cpu or shutil.which(_COMPILER) is not None


def _compile_apart() -> None:
    """Has torch.compile keep what it makes in a folder of this process, unless $TORCHINDUCTOR_CACHE_DIR names one.

    Its own cache is for all processes, and one that is killed while the C++ compiler writes leaves half a file there,
    on which every later process fails.
    """
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="ldae-compiled-")
        atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)


@contextlib.contextmanager
def evaluating(networks: Any) -> Iterator[None]:
    """The networks are in eval mode while the block lasts."""
    training = [(network, network.training) for network in networks]
    for network, _ in training:
        network.eval()
    try:
        yield
    finally:
        for network, was in training:
            network.train(was)

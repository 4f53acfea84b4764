"""Compilation and activation checkpointing of networks and their blocks, and their eval mode."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldae.engine.compiled_code import compiler, use_own_folder

MOST_BLOCKS = 24  # of a network that is compiled as a whole: those of ViT-B, in half a minute


def prepare_blocks(networks: Iterable[nn.Module], compiled: bool, recomputed: bool, sharded: bool = False) -> None:
    """Compile or checkpoint every module with an attribute `compiles`, in place; results and names stay the same.

    Args:
        networks: networks of the blocks.
        compiled: whether torch.compile compiles them (`compiled_parts`); a warning instead where it cannot: without a
            C++ compiler on a CPU, or without what Triton needs on a GPU.
        recomputed: whether the backward pass recomputes the activations in a block (arXiv 1604.06174).
        sharded: whether FSDP is to gather the weights of a block when it runs.
    """
    networks = list(networks)
    if compiled:
        use_own_folder()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of nvcc without a GPU
        if obstacle := _obstacle(networks):
            print(f"warning: train.compile=true {obstacle}; blocks are not compiled", file=sys.stderr)
            compiled = False
    for network in networks:
        if recomputed:
            for block in _blocks_of(network):
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            on_gpu = any(p.is_cuda for p in network.parameters())
            for part in compiled_parts(network, whole=on_gpu and not recomputed and not sharded):
                part.compile()


def compiled_parts(network: nn.Module, whole: bool) -> list[nn.Module]:
    """Return the modules that torch.compile compiles in a network.

    On a CPU the blocks, which takes seconds. On a GPU the whole network: there, calls of single blocks and operations
    between convolutions take longer than the products. Deep transformers stay in blocks, which are large; as a whole
    they would take minutes.

    Args:
        network: network with the attribute `compiles_whole`, or with blocks that have `compiles`.
        whole: whether the whole network may be compiled.
    """
    blocks = _blocks_of(network)
    if whole and getattr(network, "compiles_whole", False) and len(blocks) <= MOST_BLOCKS:
        return [network]
    return blocks


def _blocks_of(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if hasattr(module, "compiles")]


def _obstacle(networks: Iterable[nn.Module]) -> str:
    """Return why torch.compile cannot compile networks for their devices; empty if it can."""
    devices = {p.device for network in networks for p in network.parameters()}
    if any(device.type == "cpu" for device in devices) and shutil.which(compiler()) is None:
        return f"needs a C++ compiler ({compiler()})"
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

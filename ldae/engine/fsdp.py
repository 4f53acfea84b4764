"""Sharding of weights, gradients, optimizer moments and averages over processes (FSDP2, arXiv 2304.11277).

Each process has some rows of a sharded tensor; the full tensor exists only while a block computes. Checkpoints contain
full tensors, so that a run can resume with any number of processes, sharded or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ldae.engine.distributed import World

FORWARD_METHODS = ("encode",)  # methods beside forward that use the weights


def shard(networks: Iterable[nn.Module], world: World) -> None:
    """Shard the weights of networks in place, block by block; the names of parameters stay the same.

    Full weights are freed after each forward pass, since those of an evaluation with averages must not remain.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for network in networks:
        network.to(world.device)
        modules: list[Any] = [*(m for m in network.modules() if hasattr(m, "compiles")), network]
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for name in FORWARD_METHODS:
            if hasattr(network, name):
                register_fsdp_forward_method(network, name)


@contextlib.contextmanager
def no_gradient_sync(network: nn.Module) -> Iterator[None]:
    """Accumulate the gradients of a sharded network locally in the block, without communication."""
    sharded: Any = network if isinstance(network, FSDPModule) else None
    if sharded is not None:
        sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if sharded is not None:
            sharded.set_requires_gradient_sync(True)


def local_shard(value: Tensor) -> Tensor:
    """Return this process's rows of a tensor, with the same memory; all rows if it is not sharded."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def gather_full(value: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the full tensor with the rows of all processes, each of which has to call this.

    Args:
        value: sharded tensor, unsharded tensor, or this process's rows.
        like: sharded tensor with the layout of `value`, if `value` is this process's rows.
    """
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        value = DTensor.from_local(
            value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(like: Tensor, value: Tensor) -> Tensor:
    """Return a full tensor, the same on all processes, with the sharding and device of `like`.

    Raises:
        RuntimeError: the shapes differ.
    """
    if like.shape != value.shape:
        raise RuntimeError(f"a tensor of {tuple(value.shape)} in place of {tuple(like.shape)}")
    value = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


@torch.no_grad()
def load_full(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load full tensors into a network, sharded or not.

    Raises:
        RuntimeError: names or shapes differ from the network's.
    """
    if not isinstance(network, FSDPModule):
        network.load_state_dict(tensors)
        return
    state = network.state_dict()
    if state.keys() != tensors.keys():
        raise RuntimeError(f"names differ: {sorted(state.keys() ^ tensors.keys())[:3]}")
    for name, value in state.items():
        value.copy_(shard_like(value, tensors[name]))

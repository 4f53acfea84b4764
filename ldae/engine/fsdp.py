"""Sharding of weights, gradients, optimizer moments and averages over processes (FSDP2, arXiv 2304.11277).

Each process has some rows of a sharded tensor; the full tensor exists only while a block computes. Checkpoints contain
full tensors, so that a run can resume with any number of processes, sharded or not. Torch's modules are imported where
something is sharded: they take a second and a half.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ldae.engine.distributed import World

FORWARD_METHODS = ("encode",)  # methods beside forward that use the weights


def shard(networks: Iterable[nn.Module], world: World) -> None:
    """Shard the weights of networks in place, block by block; the names of parameters stay the same.

    Full weights are freed after each forward pass, since those of an evaluation with averages must not remain.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

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
    sharded: Any = network if _is_sharded(network) else None
    if sharded is not None:
        sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if sharded is not None:
            sharded.set_requires_gradient_sync(True)


def local_shard(value: Tensor) -> Tensor:
    """Return this process's rows of a tensor, with the same memory; all rows if it is not sharded."""
    local: Any = value.detach()
    return local.to_local() if _is_sharded(local) else local


def gather_full(value: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the full tensor with the rows of all processes, each of which has to call this.

    Args:
        value: sharded tensor, unsharded tensor, or this process's rows.
        like: sharded tensor with the layout of `value`, if `value` is this process's rows.
    """
    full: Any = value
    if _is_sharded(like) and not _is_sharded(value):
        from torch.distributed.tensor import DTensor

        layout: Any = like
        full = DTensor.from_local(
            value, layout.device_mesh, layout.placements, run_check=False, shape=layout.shape, stride=layout.stride()
        )
    return full.full_tensor() if _is_sharded(full) else full


def shard_like(like: Tensor, value: Tensor) -> Tensor:
    """Return a full tensor, the same on all processes, with the sharding and device of `like`.

    Raises:
        RuntimeError: the shapes differ.
    """
    if like.shape != value.shape:
        raise RuntimeError(f"a tensor of {tuple(value.shape)} in place of {tuple(like.shape)}")
    value = value.to(like.device)
    if _is_sharded(like):
        from torch.distributed.tensor import distribute_tensor

        layout: Any = like
        return distribute_tensor(value, layout.device_mesh, layout.placements, src_data_rank=None)
    return value


@torch.no_grad()
def load_full(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load full tensors into a network, sharded or not.

    Raises:
        RuntimeError: names or shapes differ from the network's.
    """
    if not _is_sharded(network):
        network.load_state_dict(tensors)
        return
    state = network.state_dict()
    if state.keys() != tensors.keys():
        raise RuntimeError(f"names differ: {sorted(state.keys() ^ tensors.keys())[:3]}")
    for name, value in state.items():
        value.copy_(shard_like(value, tensors[name]))


def _is_sharded(value: object) -> bool:
    """Return whether a network or a tensor is sharded: nothing is before torch's modules are imported."""
    fsdp, tensors = (sys.modules.get(f"torch.distributed.{name}") for name in ("fsdp", "tensor"))
    return (fsdp is not None and isinstance(value, fsdp.FSDPModule)) or (
        tensors is not None and isinstance(value, tensors.DTensor)
    )

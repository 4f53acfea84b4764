"""Networks whose weights, gradients, moments and averages are divided among the processes (FSDP2, arXiv 2304.11277).

Of a divided tensor each process holds its rows, and a whole one comes about for as long as a block computes. Files hold
whole tensors, so that a run goes on with any number of processes, divided or not.
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

READ_BY = ("encode",)  # what else than forward computes with the weights


def divide(networks: Iterable[nn.Module], world: World) -> None:
    """Divides networks in place, each block for itself; names of parameters stay as they are.

    No whole weights outlive a forward pass: a look with the averages would leave them to the next step.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for network in networks:
        network.to(world.device)
        parts: list[Any] = [*(m for m in network.modules() if hasattr(m, "compiles")), network]
        for part in parts:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for name in READ_BY:
            if hasattr(network, name):
                register_fsdp_forward_method(network, name)


@contextlib.contextmanager
def unsynchronised(network: nn.Module) -> Iterator[None]:
    """Gradients are kept to themselves by each process while the block lasts; nothing changes in an undivided one."""
    divided: Any = network if isinstance(network, FSDPModule) else None
    if divided is not None:
        divided.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if divided is not None:
            divided.set_requires_gradient_sync(True)


def own_rows(value: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; all of it where it is not divided."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor, like: Tensor | None = None) -> Tensor:
    """A tensor with the rows of all processes; every one of them has to call this.

    Args:
        like: the divided tensor that `value` holds this process's rows of, if `value` does not know it.
    """
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        value = DTensor.from_local(
            value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    return value.full_tensor() if isinstance(value, DTensor) else value


def divided_like(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, divided and placed as `like` is. Every process has the same `value`.

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
def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts whole tensors into a network, divided or not.

    Raises:
        RuntimeError: names or shapes are not the network's.
    """
    if not isinstance(network, FSDPModule):
        network.load_state_dict(tensors)
        return
    own = network.state_dict()
    if own.keys() != tensors.keys():
        raise RuntimeError(f"names differ: {sorted(own.keys() ^ tensors.keys())[:3]}")
    for name, value in own.items():
        value.copy_(divided_like(value, tensors[name]))

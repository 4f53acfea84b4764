"""One process or many: torchrun's environment, and the few collective calls the engine needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldae.core.errors import PeerError

ANSWER = 3.0  # seconds in which a process that is well answers when another asks who is left


@dataclass(frozen=True)
class World:
    """This process among all that train together.

    Attributes:
        device: what this process computes on.
        rank: its number; 0 writes files.
        size: how many there are.
        timeout: seconds after which waiting for another process is given up.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    timeout: float = 1800.0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The player with its gradients averaged over all processes."""
        return DistributedDataParallel(module, broadcast_buffers=False) if self.size > 1 else module

    def summed(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes, on each of them."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def highest(self, value: Tensor) -> Tensor:
        """The elementwise maximum of `value` over all processes, on each of them."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def shared(self, value: Any) -> Any:
        """Rank 0's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, a failure of the processes to reach each other is told as one: which of them do not answer.

        Raises:
            PeerError: another process is gone, or did not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            lost = self._silent()
            which = " and ".join(f"process {rank}" for rank in lost) or "another process"
            raise PeerError(
                f"{which} of {self.size} is gone, or did not answer within runtime.timeout={self.timeout:g} seconds; "
                "run the same command again to go on from the last checkpoint"
            ) from None

    def _silent(self) -> list[int]:
        """The processes that do not say within some seconds that they have noticed it too."""
        store = dist.distributed_c10d._get_default_store()
        store.set(f"ldae/noticed/{self.rank}", "1")
        deadline, lost = time.monotonic() + ANSWER, list(range(self.size))
        while lost and time.monotonic() < deadline:
            time.sleep(0.05)
            lost = [rank for rank in lost if not store.check([f"ldae/noticed/{rank}"])]
        return lost

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, how)
        return value


def join_world(device: str, timeout: float = World.timeout) -> World:
    """Joins the processes that torchrun started, if it did: nccl on CUDA, gloo on a CPU.

    Args:
        device: `cpu`, `cuda`, `cuda:N`; under torchrun each process takes the card of its local rank.
        timeout: seconds after which waiting for another process is given up.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(torch.device(device))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if device.startswith("cuda") else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return World(place, dist.get_rank(), dist.get_world_size(), timeout)


def leave_world() -> None:
    """Ends the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

"""Process groups of torchrun, and the collective operations of the engine."""

from __future__ import annotations

import contextlib
import inspect
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

# whether each forward pass copies rank 0's buffers to the others; torch 2.15 has renamed the argument
SYNC_BUFFERS = "forward_sync_buffers"
if SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    SYNC_BUFFERS = "broadcast_buffers"
ANSWER_TIME = 3.0  # seconds within which every live process reports that it noticed a failure


@dataclass(frozen=True)
class World:
    """A process of a process group.

    Attributes:
        device: device of this process.
        rank: rank of this process; rank 0 writes files.
        size: number of processes.
        timeout: seconds after which a collective operation fails.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    timeout: float = 1800.0

    @property
    def main(self) -> bool:
        """Return whether this is the main process, which writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are averaged over all processes."""
        options: dict[str, Any] = {SYNC_BUFFERS: False}
        return DistributedDataParallel(module, **options) if self.size > 1 else module

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes, on every process."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum of `value` over all processes, on every process."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def shared(self, value: Any) -> Any:
        """Return rank 0's `value` on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def report_lost_processes(self) -> Iterator[None]:
        """Raise a PeerError with the ranks that do not respond where communication fails inside the block.

        Raises:
            PeerError: another process ended, or did not respond in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            lost = self._find_lost_ranks()
            which = " and ".join(f"process {rank}" for rank in lost) or "another process"
            raise PeerError(
                f"{which} of {self.size} is gone, or did not answer within runtime.timeout={self.timeout:g} seconds; "
                "run the same command again to go on from the last checkpoint"
            ) from None

    def _find_lost_ranks(self) -> list[int]:
        """Return the ranks that do not report the failure in the common store within some seconds."""
        store = dist.distributed_c10d._get_default_store()
        store.set(f"ldae/noticed/{self.rank}", "1")
        deadline, lost = time.monotonic() + ANSWER_TIME, list(range(self.size))
        while lost and time.monotonic() < deadline:
            time.sleep(0.05)
            lost = [rank for rank in lost if not store.check([f"ldae/noticed/{rank}"])]
        return lost

    def _reduce(self, value: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, operation)
        return value


def join_world(device: str, timeout: float = World.timeout) -> World:
    """Join the process group of torchrun, if there is one: nccl on CUDA, gloo on a CPU.

    Args:
        device: `cpu`, `cuda`, `cuda:N`; under torchrun each process uses the GPU of its local rank.
        timeout: seconds after which a collective operation fails.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(torch.device(device))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own_device = torch.device("cuda", local) if device.startswith("cuda") else torch.device(device)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    dist.init_process_group("nccl" if own_device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    return World(own_device, dist.get_rank(), dist.get_world_size(), timeout)


def leave_world() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

"""Checks of every step: NaN or infinite values never reach the weights, and all processes stop after the same step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldae.core.errors import NonFiniteError
from ldae.core.files import write_json
from ldae.core.types import Batch
from ldae.engine.distributed import World
from ldae.engine.signals import StopFlag


@dataclass(frozen=True)
class Verdict:
    """Result of the check of a step.

    Attributes:
        step: number of the step, from 1.
        losses, norms: loss and gradient norm of each trainable module.
        batch: this process's rows of the batch.
        flags: (2,) float32, 1 or 0: a value is NaN or infinite on any process; a signal stopped any process.
        arrived: event after the copy of the flags to the host; None if they are there.
    """

    step: int
    losses: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    batch: Batch
    flags: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[bool, bool]:
        """Return (whether a value is not finite, whether to stop), once the device has computed them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, stopped = self.flags.tolist()
        return bool(bad), bool(stopped)


class Guard:
    """Check of every step before the optimizers update the weights.

    Attributes:
        deferred: whether a verdict is read during the next step, so that the host does not wait for the device at
            every step; on the device, `found_inf` then makes the optimizers skip the update.
        stopping: whether a verdict so far says that a signal stopped any process.

    Args:
        world: process group.
        stop: stop flag of this process.
        folder: folder of the report on a step that is not finite.
        describe_step: (batch, step from 0, module) -> images and noise levels of the step, for the report.
        deferred: see the attribute.
    """

    def __init__(
        self,
        world: World,
        stop: StopFlag,
        folder: Path,
        describe_step: Callable[[Batch, int, str], Mapping[str, Any]],
        deferred: bool,
    ):
        self.world, self.stop, self.folder, self.describe_step, self.deferred = (
            world,
            stop,
            folder,
            describe_step,
            deferred,
        )
        self.pending: Verdict | None = None
        self.stopping = False

    def check(self, step: int, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Agree with all processes on step number `step`.

        Returns:
            A float32 scalar on the device: 1 if the update must be skipped, else 0.

        Raises:
            NonFiniteError: the loss or gradient of this step or the one before is NaN or infinite.
        """
        self.resolve()
        values = torch.stack([value.float() for value in (*losses.values(), *norms.values())])
        bad = (~torch.isfinite(values)).any().float()
        flags = self.world.max(torch.stack([bad, torch.full_like(bad, float(bool(self.stop.signal_name)))]))
        self.pending = Verdict(step, losses, norms, batch, *_copy_to_host(flags))
        if not self.deferred:
            self.resolve()
        return flags[0]

    def resolve(self) -> None:
        """Read the pending verdict, if there is one.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite.
        """
        verdict, self.pending = self.pending, None
        if verdict is None:
            return
        bad, stopped = verdict.read()
        self.stopping = self.stopping or stopped  # the same on all processes, which stop after this step
        if stopped and not self.stop.signal_name:
            self.stop.signal_name = "a signal to another process"
        if bad:
            self._raise(verdict)

    def _raise(self, verdict: Verdict) -> None:
        """Write the report on a step that is not finite, and raise NonFiniteError."""
        names = [name for name, loss in verdict.losses.items() if not torch.isfinite(loss + verdict.norms[name])]
        name = next(iter(names or verdict.losses))  # no name: the value is on another process
        loss, norm = float(verdict.losses[name]), float(verdict.norms[name])
        report = {"step": verdict.step, "module": name, "loss": str(loss), "norm": str(norm)}
        path = self.folder / f"nonfinite-rank{self.world.rank}.json"
        write_json(path, {**report, **self.describe_step(verdict.batch, verdict.step - 1, name)})
        raise NonFiniteError(
            f"loss {loss:g}, gradient norm {norm:g} at step {verdict.step}; the step was not made. "
            f"The batch and its noise levels are in {path}. Lower optim.blr, or look at those images"
        )


def _copy_to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start a copy of flags to the host; return the copy, and the event after it or None on a CPU."""
    if flags.device.type != "cuda":
        return flags, None
    host = torch.empty(flags.shape, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flags.device))  # of cuda:N, which need not be the current device
    return host, arrived

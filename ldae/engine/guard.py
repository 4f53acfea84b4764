"""Nothing NaN or infinite reaches the weights, and all processes stop after the same step."""

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
    """What is known of a step once its gradients are.

    Attributes:
        step: its number, from 1.
        losses, norms: by player.
        batch: this process's share.
        flags: (2,) float32, 1 or 0: something is NaN or infinite on a process; one was asked to stop.
        arrived: when the flags are on the host; None if they are.
    """

    step: int
    losses: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    batch: Batch
    flags: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[bool, bool]:
        """Whether something is wrong, whether to stop; waits until the device has come to it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, requested = self.flags.tolist()
        return bool(bad), bool(requested)


class Guard:
    """Judges every step before the optimisers move.

    Attributes:
        deferred: whether a verdict is read after the next step has been begun, so that the host need not wait for the
            device at every step; optimisers are then told on the device to leave the weights alone (`found_inf`).
        stopping: whether some process was asked to stop, as far as verdicts were read.

    Args:
        world, stop: of this process.
        folder: for the report on a step that is not finite.
        made_of: (batch, step from 0, player) -> what that step was made of, for the report.
        deferred: as above.
    """

    def __init__(
        self,
        world: World,
        stop: StopFlag,
        folder: Path,
        made_of: Callable[[Batch, int, str], Mapping[str, Any]],
        deferred: bool,
    ):
        self.world, self.stop, self.folder, self.made_of, self.deferred = world, stop, folder, made_of, deferred
        self.pending: Verdict | None = None
        self.stopping = False

    def judge(self, step: int, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Has all processes agree on step number `step`; 1 if it must not be made, else 0, on the device.

        Raises:
            NonFiniteError: the step, or the one before it, has something NaN or infinite.
        """
        self.settle()
        values = torch.stack([value.float() for value in (*losses.values(), *norms.values())])
        bad = (~torch.isfinite(values)).any().float()
        flags = self.world.highest(torch.stack([bad, torch.full_like(bad, float(bool(self.stop.requested)))]))
        self.pending = Verdict(step, losses, norms, batch, *_on_its_way(flags))
        if not self.deferred:
            self.settle()
        return flags[0]

    def settle(self) -> None:
        """Reads the verdict that is pending, if there is one.

        Raises:
            NonFiniteError: as it says.
        """
        found, self.pending = self.pending, None
        if found is None:
            return
        bad, requested = found.read()
        self.stopping = self.stopping or requested  # agreed by all: each of them stops after this step
        if requested and not self.stop.requested:
            self.stop.requested = "a signal to another process"
        if bad:
            self._refuse(found)

    def _refuse(self, found: Verdict) -> None:
        names = [name for name, loss in found.losses.items() if not torch.isfinite(loss + found.norms[name])]
        name = next(iter(names or found.losses))  # none: it was on another process
        loss, norm = float(found.losses[name]), float(found.norms[name])
        report = {"step": found.step, "player": name, "loss": str(loss), "norm": str(norm)}
        where = self.folder / f"nonfinite-rank{self.world.rank}.json"
        write_json(where, {**report, **self.made_of(found.batch, found.step - 1, name)})
        raise NonFiniteError(
            f"loss {loss:g}, gradient norm {norm:g} at step {found.step}; the step was not made. "
            f"The batch and its noise levels are in {where}. Lower optim.blr, or look at those images"
        )


def _on_its_way(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Flags being copied to the host, and when they have arrived."""
    if flags.device.type != "cuda":
        return flags, None
    host = torch.empty(flags.shape, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived

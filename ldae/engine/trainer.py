"""The training loop, told top to bottom."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldae.core.errors import ConfigError, Interrupted
from ldae.core.files import remove_temporary
from ldae.core.progress import Mode, Progress
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator, TrainableModule
from ldae.engine.blocks import evaluating, prepare_blocks
from ldae.engine.checkpoint import Checkpoint, folder_of, newest, publish
from ldae.engine.distributed import World
from ldae.engine.ema import EMA
from ldae.engine.fsdp import divide, own_rows, unsynchronised, whole
from ldae.engine.guard import Guard
from ldae.engine.logging import Meter, RunLog
from ldae.engine.optim import Optim
from ldae.engine.precision import resolve_precision
from ldae.engine.run_folder import RunFolder
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.state import load_state, save_state
from ldae.engine.threads import AdaptiveThreads

# (step) -> scalars, pictures. Called with the averaged weights in place.
Report = tuple[Mapping[str, float], Mapping[str, Tensor]]


class Batches(Protocol):
    """What the trainer needs of a loader."""

    steps_per_epoch: int

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's rows of the global batch at steps start, start + 1, ..."""


class Monitor(Protocol):
    """Something to look at now and then; it changes nothing.

    Attributes:
        name: of its rows.
        every: steps between looks; 0 for the start alone.
    """

    name: str
    every: int

    def __call__(self, step: int) -> Report: ...


@dataclass(frozen=True)
class RunContext:
    """Where a training runs and what goes with it.

    Attributes:
        run: the folder to write to; held by the caller.
        world: this process among others.
        record: what else a checkpoint's manifest says (config, fingerprints).
        monitors: to look at now and then, on the main process; of a divided network (`train.shard`) the same on all.
        stop: the flag that signals set.
        progress: how far it is: a bar, lines, or nothing.
        title: what is trained, where that is not the run's own network.
        divides: whether `train.shard` is taken care of: all processes have the monitors.
        threads: adapts the number of threads to the load at every step, or None.
    """

    run: RunFolder
    world: World
    record: Mapping[str, Any]
    monitors: Sequence[Monitor] = ()
    stop: StopFlag = field(default_factory=StopFlag)
    progress: Mode = "off"
    title: str = ""
    divides: bool = False
    threads: AdaptiveThreads | None = None


class Trainer:
    """Trains players on batches, so that it can be stopped anywhere and goes on bit for bit.

    Args:
        players: by name; each gets an optimiser of its own.
        loader: batches by step.
        optim: makes optimisers, tells learning rates.
        settings: how long and how.
        seed: of the noise.
        job: where it runs.
    """

    def __init__(
        self,
        trainable_modules: Mapping[str, TrainableModule],
        loader: Batches,
        optim: Optim,
        settings: TrainSettings,
        seed: int,
        context: RunContext,
    ):
        self.trainable_modules, self.loader, self.optim, self.settings = (
            dict(trainable_modules),
            loader,
            optim,
            settings,
        )
        self.seed, self.context = seed, context
        self.run, self.world, self.stop = context.run, context.world, context.stop
        self.total = settings.total_steps(loader.steps_per_epoch)
        self.slices = settings.slices_of(context.world.size)
        self.precision = resolve_precision(settings.precision, str(context.world.device))
        if settings.compile and context.threads is not None:
            context.threads.for_compiled_blocks()
        self.networks: dict[str, nn.Module] = {name: module.network for name, module in trainable_modules.items()}
        prepare_blocks(self.networks.values(), settings.compile, settings.recompute)
        self.sharded = settings.shard and context.world.size > 1
        if self.sharded:
            self._divide()
        self.weights = {
            f"{n}.{k}": p for n, m in self.networks.items() for k, p in m.named_parameters() if p.requires_grad
        }
        self.optimizers = {name: optim.build(m) for name, m in self.networks.items()}
        self.ema = EMA({name: own_rows(value) for name, value in self.weights.items()}, settings.ema)
        self.wrapped: dict[str, Any] = dict(trainable_modules)
        if not self.sharded:
            self.wrapped = {name: context.world.wrapped(module) for name, module in trainable_modules.items()}  # type: ignore[arg-type]
        self.meter, self.step, self.saved = Meter(), 0, -1
        self.guard = Guard(context.world, context.stop, context.run.path, self._made_of, self._deferred())

    def _divide(self) -> None:
        if not self.context.divides or len(self.trainable_modules) > 1:
            raise ConfigError("train.shard", True, "is for pretraining (ldae pretrain) alone; use false")
        divide(self.networks.values(), self.world)

    def _deferred(self) -> bool:
        """Whether steps are judged late: on a GPU, by optimisers that can be told so."""
        fused = all(o.defaults.get("fused") for o in self.optimizers.values())
        return self.world.device.type == "cuda" and fused and not self.sharded

    def fit(self) -> None:
        """Runs from the newest checkpoint, or from the start, to the end.

        Raises:
            Interrupted: a signal came; the state was saved.
            NonFiniteError: a loss or gradient was NaN or infinite; the step was not made.
            StorageError, CheckpointError: as their names say.
        """
        self._resume()
        log = self._open_log()
        with self.stop.deferred():
            try:
                self._train(log)
            except Interrupted:
                self._save(log)
                raise
            finally:
                if log is not None:
                    log.close()

    def _train(self, log: RunLog | None) -> None:
        batches = self.loader.batches(self.step)
        while self.step < self.total:
            self._look(log)
            if self.context.threads is not None:
                self.context.threads.update()
            losses, norms, rate = self.advance(next(batches))
            self._report(log, losses, norms, rate)
            if self.guard.stopping:
                self.stop.poll()
            if self.step % self.settings.checkpoint_every == 0:
                self._save(log)
        self._look(log)
        self._save(log)
        if log is not None:
            log.warn_of_rising_loss()

    def advance(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """One step on this process's share of a batch: {name: loss}, {name: gradient norm}, the learning rate."""
        rate = self.optim.rate(self.step, self.total, self.settings.batch)
        losses, norms = self._learn(batch, rate)
        self.step += 1
        self.ema.update(self.step)
        return losses, norms, rate

    def _learn(self, batch: Batch, rate: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(seed_of(self.seed, 1, self.step, self.world.rank))  # for dropout and the like
        active = [name for name, module in self.trainable_modules.items() if module.is_active(self.step)]
        losses, norms, found = {}, {}, {}
        for name in active:
            self.optimizers[name].zero_grad(set_to_none=True)
            losses[name] = self._gradients(name, batch)
            norm = nn.utils.get_total_norm([p.grad for p in self._trained(name) if p.grad is not None])
            norms[name], found[name] = whole(norm), norm
        bad = self.guard.judge(self.step + 1, losses, norms, batch)
        for name in active:  # nobody moves before all are judged
            if self.settings.clip:
                nn.utils.clip_grads_with_norm_(self._trained(name), self.settings.clip, found[name])
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            if self.guard.deferred:
                self.optimizers[name].found_inf = bad  # type: ignore[attr-defined]
            self.optimizers[name].step()
        return losses, norms

    def _trained(self, name: str) -> list[Tensor]:
        return [p for group in self.optimizers[name].param_groups for p in group["params"]]

    def _gradients(self, name: str, batch: Batch) -> Tensor:
        """Leaves the gradient of a player's mean loss in its parameters; returns this process's mean loss."""
        parts, wrapped = self.settings.accumulate, self.wrapped[name]
        rows, losses = len(batch) // parts, []
        for part in range(parts):
            piece = batch.rows(part * rows, (part + 1) * rows)
            with self._waiting(name) if part < parts - 1 else contextlib.nullcontext():
                with self._autocast():
                    loss, metrics = wrapped(piece, self._draws(part, self.step))
                (loss / parts).backward()
            losses.append(loss.detach())
            self.meter.add(self._prefix(name), metrics)
        return torch.stack(losses).mean()

    def _waiting(self, name: str) -> contextlib.AbstractContextManager[None]:
        """While it lasts, the processes keep a player's gradients to themselves."""
        wrapped = self.wrapped[name]
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else unsynchronised(self.networks[name])

    def _autocast(self) -> torch.autocast:
        enabled = self.precision.value == "bf16"
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _draws(self, part: int, step: int) -> BatchGenerator:
        """The noise of one part of this process's share at a step: the slices of the global batch that lie in it."""
        count = self.slices // (self.world.size * self.settings.accumulate)
        first = (self.world.rank * self.settings.accumulate + part) * count
        return BatchGenerator([seed_of(self.seed, 2, step, first + k) for k in range(count)], self.world.device)

    def _made_of(self, batch: Batch, step: int, module: str) -> Mapping[str, Any]:
        """What a step was made of: file names, and what was drawn for each image."""
        rng = (
            [self.trainable_modules[module].describe(batch, self._draws(0, step))]
            if self.settings.accumulate == 1
            else []
        )
        return {"images": self._names(batch), "levels": rng}

    def _names(self, batch: Batch) -> list[str]:
        name = getattr(getattr(self.loader, "images", None), "name", str)
        return [name(int(i)) for i in batch.index]

    def _prefix(self, name: str) -> str:
        return "" if len(self.trainable_modules) == 1 else f"{name}/"

    def _open_log(self) -> RunLog | None:
        self._clock, self._since = time.perf_counter(), self.step
        if not self.world.main:
            return None
        self.run.set_status("running", self.step)
        progress = Progress(
            self.context.progress, self.total, self.step, self.context.title, images=self.settings.batch
        )
        return RunLog(self.run, self.step, progress)

    def _report(
        self, log: RunLog | None, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor], rate: float
    ) -> None:
        """Every log_every steps a row; every step the bar moves."""
        row: dict[str, Any] = {}
        if self.step % self.settings.log_every == 0 or self.step == self.total:
            self.guard.settle()
            for name, loss in losses.items():
                value = float(self.world.summed(loss) / self.world.size)
                row |= {f"{self._prefix(name)}loss": value, f"{self._prefix(name)}loss_hex": value.hex()}
                row[f"{self._prefix(name)}gradient_norm"] = float(norms[name])
            row |= self.meter.take(self.world.summed)
            seconds = time.perf_counter() - self._clock
            row |= {
                "learning_rate": rate,
                "images_per_second": (self.step - self._since) * self.settings.batch / seconds,
            }
            row["epoch"] = self.step / self.loader.steps_per_epoch
            self._clock, self._since = time.perf_counter(), self.step
        if log is not None:
            if row:
                log.row(self.step, row)
            log.advance(row.get(f"{self._prefix(next(iter(losses)))}loss"))

    def _look(self, log: RunLog | None) -> None:
        """The monitors that are due, before the step is made, with the averaged weights."""
        due = [m for m in self.context.monitors if (self.step % m.every == 0 if m.every else self.step == 0)]
        if (log is None and not self.sharded) or not (due or self.step == self.total):
            return  # of a divided network every process has to look
        last = [m for m in self.context.monitors if m.every and m not in due and self.step == self.total]
        plain = torch.compiler.set_stance("force_eager")  # nothing is compiled for the shapes of a few batches
        with self._untimed(log), plain, self.ema.applied(), torch.no_grad(), evaluating(self.networks.values()):
            for monitor in due + last:
                scalars, pictures = monitor(self.step)
                if log is None:
                    continue
                if scalars:
                    log.row(self.step, {"monitor": monitor.name, **scalars})
                for name, picture in pictures.items():
                    log.image(name, picture, self.step)
                if headline := getattr(monitor, "headline", None):
                    log.progress.show(monitor.name, headline(scalars))

    @contextlib.contextmanager
    def _untimed(self, log: RunLog | None) -> Iterator[None]:
        """Leave the block's time out of images per second and of the time left."""
        began = time.perf_counter()
        with log.progress.paused() if log else contextlib.nullcontext():
            yield
        self._clock += time.perf_counter() - began

    def _save(self, log: RunLog | None) -> None:
        """Publishes a checkpoint of this step, once."""
        if self.saved != self.step:
            with self._untimed(log):
                self._publish(log)

    def _publish(self, log: RunLog | None) -> None:
        self.guard.settle()
        state = save_state(self) if self.world.main or self.sharded else {}
        if self.world.main:
            if log is not None:
                log.flush()
            epoch, position = divmod(self.step, self.loader.steps_per_epoch)
            manifest = {**self.context.record, "step": self.step, "epoch": epoch, "position": position}
            manifest |= {"total": self.total, "world": self.world.size, "slices": self.slices}
            publish(self.run.checkpoints, state, manifest, self.settings.keep)
            self.run.set_status("running", self.step)
        self.saved = self.step
        self.world.wait()

    def _resume(self) -> None:
        """Takes up the newest whole checkpoint, if there is one."""
        found: Checkpoint | None = None
        if self.world.main:
            remove_temporary(self.run.checkpoints, age=0)
            found = newest(self.run.checkpoints)
        step = self.world.shared(found.step if found else None)
        if step is None:
            return
        if found is None:
            found = Checkpoint(folder_of(self.run.checkpoints, step), {"step": step})
        load_state(self, found)
        self.step = self.saved = step
        self._check_length(found.manifest.get("total", self.total))

    def _check_length(self, before: int) -> None:
        """Compare the length of the run with the one that its checkpoint was trained for.

        Raises:
            ConfigError: the run has made more steps than it is to have.
        """
        key = "train.epochs" if self.settings.steps is None else "train.steps"
        value = self.settings.epochs if self.settings.steps is None else self.settings.steps
        if self.total < self.step:
            message = (
                f"is less than the {self.step} steps that this run has made; give at least as many, or another out="
            )
            raise ConfigError(key, value, message)
        if self.world.main and before != self.total and self.step < self.total:
            batch = self.settings.batch
            old, new = self.optim.rate(self.step - 1, before, batch), self.optim.rate(self.step, self.total, batch)
            print(
                f"warning: {key}={value} changes the length from {before:,} to {self.total:,} steps: at step "
                f"{self.step:,} the learning rate goes from {old:.3g} to {new:.3g}",
                file=sys.stderr,
            )

"""The training loop."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldae.core.errors import ConfigError, Interrupted
from ldae.core.files import remove_temporary
from ldae.core.progress import Mode, Progress
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator, TrainableModule
from ldae.engine.blocks import eval_mode, prepare_blocks
from ldae.engine.checkpoint import Checkpoint, checkpoint_folder, newest
from ldae.engine.compiled_code import CodeArchive
from ldae.engine.distributed import World
from ldae.engine.early_stop import EarlyStop
from ldae.engine.fsdp import gather_full, no_gradient_sync, shard
from ldae.engine.guard import Guard
from ldae.engine.logging import Meter, RunLog
from ldae.engine.optim import Optim, can_skip
from ldae.engine.precision import resolve_precision
from ldae.engine.run_folder import RunFolder
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.threads import AdaptiveThreads
from ldae.engine.train_state import TrainState

# scalars and pictures of an evaluation, which sees the averaged weights
Report = tuple[Mapping[str, float], Mapping[str, Tensor]]


class Batches(Protocol):
    """Batches by step, as the trainer reads them."""

    steps_per_epoch: int

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Yield this process's rows of the global batch at steps start, start + 1, ..."""


class Monitor(Protocol):
    """An evaluation in the course of a training; it changes nothing.

    Attributes:
        name: of its rows in metrics.jsonl.
        every: steps between evaluations; 0 for the start alone.
    """

    name: str
    every: int

    def __call__(self, step: int) -> Report: ...


@dataclass(frozen=True)
class RunContext:
    """The run, the machine and the evaluations of a training.

    Attributes:
        run: folder to write to, held by the caller.
        world: this process among others.
        record: further entries of a checkpoint's manifest (config, fingerprints).
        monitors: evaluations on the main process; with sharded weights (`train.shard`) the same on all processes.
        stop: the flag that signals set.
        progress: a bar, lines, or nothing.
        title: name of the trained module, where it is not the run's own network.
        can_shard: whether `train.shard` is supported: all processes have the monitors.
        threads: adapts the number of threads to the load at every step, or None.
        loggers: names of ldae.engine.loggers.
        on_start: called by the main process before the first step, once a checkpoint is loaded and fits the settings.
        early_stop: rule that may end the training before its last step; the same on all processes.
        cache: folder for compiled code, which later runs load; None to compile anew.
    """

    run: RunFolder
    world: World
    record: Mapping[str, Any]
    monitors: Sequence[Monitor] = ()
    stop: StopFlag = field(default_factory=StopFlag)
    progress: Mode = "off"
    title: str = ""
    can_shard: bool = False
    threads: AdaptiveThreads | None = None
    loggers: Sequence[str] = ("tensorboard",)
    on_start: Callable[[], None] = lambda: None
    early_stop: EarlyStop | None = None
    cache: Path | None = None


class Trainer:
    """Train modules on batches; it can be stopped anywhere and continues bit for bit.

    Args:
        modules: trainable modules by name; each gets an optimizer of its own.
        loader: batches by step.
        optim: builds optimizers and gives learning rates.
        settings: length and details of the training.
        seed: of the noise.
        context: the run, the machine and the evaluations.

    Attributes:
        state: everything that a step changes.
        total: number of steps of the whole training.
    """

    def __init__(
        self,
        modules: Mapping[str, TrainableModule],
        loader: Batches,
        optim: Optim,
        settings: TrainSettings,
        seed: int,
        context: RunContext,
    ):
        self.modules, self.loader, self.optim, self.settings = dict(modules), loader, optim, settings
        self.seed, self.context = seed, context
        self.run, self.world, self.stop = context.run, context.world, context.stop
        self.total = settings.total_steps(loader.steps_per_epoch)
        self.slices = settings.slices_of(context.world.size)
        self.precision = resolve_precision(settings.precision, str(context.world.device))
        if settings.compile and context.threads is not None:
            context.threads.for_compiled_blocks()
        networks = [module.network for module in modules.values()]
        self.sharded = settings.shard and context.world.size > 1
        self.code: CodeArchive | None = None
        if settings.compile and context.cache is not None:
            self.code = CodeArchive.restored(context.cache, networks)
        prepare_blocks(networks, settings.compile, settings.recompute, self.sharded)
        if self.sharded:
            if not context.can_shard or len(modules) > 1:
                raise ConfigError("train.shard", True, "is for pretraining (ldae pretrain) alone; use false")
            shard(networks, self.world)
        self.state = TrainState(modules, optim, settings.ema)
        self.parallel: dict[str, Any] = dict(modules)
        if not self.sharded:
            self.parallel = {name: context.world.wrap(module) for name, module in modules.items()}  # type: ignore[arg-type]
        self.meter, self.saved = Meter(), -1
        self._clock, self._since = time.perf_counter(), 0  # of the images per second
        self.guard = Guard(context.world, context.stop, context.run.path, self._inputs_of, self._is_deferred())

    def fit(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end or until the rule of early stopping holds.

        Raises:
            Interrupted: a signal came; the state was saved.
            NonFiniteError: a loss or gradient was NaN or infinite; the step was not made.
            StorageError, CheckpointError: as their names say.
        """
        self._resume()
        if self.world.main:
            self.context.on_start()
        log = self._open_log()
        first = self.state.step
        with self.stop.deferred(), contextlib.ExitStack() as closing:
            # closed at once: an error that is kept, as notebooks do, would keep the processes that read
            batches = closing.enter_context(contextlib.closing(self.loader.batches(first)))
            if log is not None:
                closing.callback(log.close)
            try:
                while self.state.step < self.total:
                    self._evaluate(log)
                    if self._has_stalled():
                        break
                    losses, norms, rate = self.train_step(next(batches))
                    self._log(log, losses, norms, rate)
                    if self.guard.stopping:
                        self.stop.poll()
                    if self.state.step == first + 1:
                        self._save_code()
                    if self.state.step % self.settings.checkpoint_every == 0:
                        self._save(log)
                else:
                    self._evaluate(log)
                self._save(log)
            except Interrupted:
                self._save(log)
                raise
            if log is not None:
                log.warn_of_rising_loss()

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """Make one step on this process's share of a batch.

        Returns:
            {module: loss}, {module: gradient norm}, and the learning rate.
        """
        if self.context.threads is not None:
            self.context.threads.update()
        if self.settings.compile and self.world.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # without effect unless TORCHINDUCTOR_CUDAGRAPHS=1
        state, parts = self.state, self.settings.accumulate
        rate = self.optim.rate(state.step, self.total, self.settings.batch)
        torch.manual_seed(seed_of(self.seed, 1, state.step, self.world.rank))  # for dropout and the like
        active = [name for name, module in self.modules.items() if module.is_active(state.step)]
        losses, norms, local_norms = {}, {}, {}
        for name in active:
            state.optimizers[name].zero_grad(set_to_none=True)
            pieces = []
            for part, piece in enumerate(batch.split(parts)):
                with self._without_sync(name) if part < parts - 1 else contextlib.nullcontext():
                    with self._autocast():
                        loss, metrics = self.parallel[name](piece, self._noise(part, state.step))  # forward
                    (loss / parts).backward()
                pieces.append(loss.detach())
                self.meter.add(self._prefix(name), metrics)
            losses[name] = torch.stack(pieces).mean()
            gradients = [p.grad for p in state.parameters(name) if p.grad is not None]
            local_norms[name] = nn.utils.get_total_norm(gradients)
            norms[name] = gather_full(local_norms[name])
        skip = self.guard.check(state.step + 1, losses, norms, batch)
        for name in active:  # no module moves before all are judged
            optimizer = state.optimizers[name]
            if self.settings.clip:
                nn.utils.clip_grads_with_norm_(state.parameters(name), self.settings.clip, local_norms[name])
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            if self.guard.deferred:
                optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        state.step += 1
        state.ema.update(state.step)
        return losses, norms, rate

    def _log(self, log: RunLog | None, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor], rate: float) -> None:
        """Write a row every `log_every` steps; move the bar every step."""
        row: dict[str, Any] = {}
        step = self.state.step
        if step % self.settings.log_every == 0 or step == self.total:
            self.guard.resolve()
            for name, loss in losses.items():
                value = float(self.world.sum(loss) / self.world.size)
                row |= {f"{self._prefix(name)}loss": value, f"{self._prefix(name)}loss_hex": value.hex()}
                row[f"{self._prefix(name)}gradient_norm"] = float(norms[name])
            row |= self.meter.take(self.world.sum)
            seconds = time.perf_counter() - self._clock
            row["learning_rate"] = rate
            row["images_per_second"] = (step - self._since) * self.settings.batch / seconds
            row["epoch"] = step / self.loader.steps_per_epoch
            self._clock, self._since = time.perf_counter(), step
        if log is not None:
            if row:
                log.row(step, row)
            log.advance(row.get(f"{self._prefix(next(iter(losses)))}loss"))

    def _evaluate(self, log: RunLog | None) -> None:
        """Run the monitors that are due, before the step is made, with the averaged weights."""
        step = self.state.step
        due = [m for m in self.context.monitors if (step % m.every == 0 if m.every else step == 0)]
        if (log is None and not self.sharded) or not (due or step == self.total):
            return  # with sharded weights every process has to take part
        last = [m for m in self.context.monitors if m.every and m not in due and step == self.total]
        eager = torch.compiler.set_stance("force_eager")  # nothing is compiled for the shapes of a few batches
        evaluation = eval_mode(self.state.networks.values())
        with self._untimed(log), eager, self.state.ema.applied(), torch.no_grad(), evaluation:
            for monitor in due + last:
                scalars, pictures = monitor(step)
                if log is None:
                    continue
                if scalars:
                    log.row(step, {"monitor": monitor.name, **scalars})
                for name, picture in pictures.items():
                    log.image(name, picture, step)
                if headline := getattr(monitor, "headline", None):
                    log.progress.show(monitor.name, headline(scalars))

    def _has_stalled(self) -> bool:
        """Return whether the training ends before this step; the main process, which evaluates, decides for all."""
        rule = self.context.early_stop
        if rule is None or not rule.is_due(self.state.step):
            return False
        return bool(self.world.shared(self.world.main and rule.has_stalled(self.run.metrics)))

    def _save(self, log: RunLog | None) -> None:
        """Publish a checkpoint of this step, once."""
        step = self.state.step
        if self.saved == step:
            return
        with self._untimed(log):
            self.guard.resolve()
            tensors = self.state.tensors() if self.world.main or self.sharded else {}
            if self.world.main:
                if log is not None:
                    log.flush()
                epoch, position = divmod(step, self.loader.steps_per_epoch)
                record = {**self.context.record, "epoch": epoch, "position": position, "total": self.total}
                record |= {"world": self.world.size, "slices": self.slices}
                self.state.save(self.run.checkpoints, record, self.settings.keep, tensors)
                self.run.set_status("running", step)
            self.saved = step
            self._save_code()  # a step may have compiled for another number of threads
            self.world.wait()

    def _save_code(self) -> None:
        """Save compiled code for later runs."""
        if self.code is not None and self.world.main:
            self.code.save()

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one."""
        checkpoint: Checkpoint | None = None
        if self.world.main:
            remove_temporary(self.run.checkpoints, age=0)
            checkpoint = newest(self.run.checkpoints)
        step = self.world.shared(checkpoint.step if checkpoint else None)
        if step is None:
            return
        if checkpoint is None:
            checkpoint = Checkpoint(checkpoint_folder(self.run.checkpoints, step), {"step": step})
        self.state.load(checkpoint)
        self.saved = step
        self._check_length(checkpoint.manifest.get("total", self.total))

    def _check_length(self, before: int) -> None:
        """Compare the length of the run with the one that its checkpoint was trained for.

        Raises:
            ConfigError: the run has made more steps than it is to have.
        """
        key = "train.epochs" if self.settings.steps is None else "train.steps"
        value = self.settings.epochs if self.settings.steps is None else self.settings.steps
        step, batch = self.state.step, self.settings.batch
        if self.total < step:
            message = f"is less than the {step} steps that this run has made; give at least as many, or another out="
            raise ConfigError(key, value, message)
        if self.world.main and before != self.total and step < self.total:
            old, new = self.optim.rate(step - 1, before, batch), self.optim.rate(step, self.total, batch)
            print(
                f"warning: {key}={value} changes the length from {before:,} to {self.total:,} steps: at step "
                f"{step:,} the learning rate goes from {old:.3g} to {new:.3g}",
                file=sys.stderr,
            )

    def _open_log(self) -> RunLog | None:
        self._clock, self._since = time.perf_counter(), self.state.step
        if not self.world.main:
            return None
        step = self.state.step
        self.run.set_status("running", step)
        progress = Progress(self.context.progress, self.total, step, self.context.title, images=self.settings.batch)
        return RunLog(self.run, step, progress, self.context.loggers, self.context.record.get("config"))

    @contextlib.contextmanager
    def _untimed(self, log: RunLog | None) -> Iterator[None]:
        """Leave the block's time out of images per second and of the time left."""
        began = time.perf_counter()
        with log.progress.paused() if log else contextlib.nullcontext():
            yield
        self._clock += time.perf_counter() - began

    def _without_sync(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep a module's gradients on this process while the block lasts."""
        parallel = self.parallel[name]
        return parallel.no_sync() if hasattr(parallel, "no_sync") else no_gradient_sync(self.state.networks[name])

    def _autocast(self) -> torch.autocast:
        enabled = self.precision.value == "bf16"
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _noise(self, part: int, step: int) -> BatchGenerator:
        """Return the random numbers of one part of this process's share: the slices of the global batch in it."""
        count = self.slices // (self.world.size * self.settings.accumulate)
        first = (self.world.rank * self.settings.accumulate + part) * count
        return BatchGenerator([seed_of(self.seed, 2, step, first + k) for k in range(count)], self.world.device)

    def _inputs_of(self, batch: Batch, step: int, name: str) -> Mapping[str, Any]:
        """Return the file names and noise levels of a step, for the report on one that was not finite."""
        levels = []
        if self.settings.accumulate == 1:
            levels.append(self.modules[name].describe(batch, self._noise(0, step)))
        name_of = getattr(getattr(self.loader, "images", None), "name", str)
        return {"images": [name_of(int(i)) for i in batch.index], "levels": levels}

    def _is_deferred(self) -> bool:
        """Return whether verdicts on steps are read late: on a GPU, with optimizers that can skip a step there."""
        can_defer = all(map(can_skip, self.state.optimizers.values()))
        return self.world.device.type == "cuda" and can_defer and not self.sharded

    def _prefix(self, name: str) -> str:
        return "" if len(self.modules) == 1 else f"{name}/"

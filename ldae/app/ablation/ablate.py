"""Run an ablation: print its plan and its cost, then pretrain and probe the missing trials.

    ldae ablate grid=tokenizers data=cifar10 data.root=DIR/cifar10 budget=laptop out=OUT
    ldae ablate grid=FILE.yaml budget=demo out=OUT        # your own grid
    ldae ablate grid=deconstruct ... dry=true             # print the plan and its cost

Keys: grid= (deconstruct, tokenizers, pixel, schedules, targets, depth, level, seeds, or a YAML file) budget= (demo,
laptop, gpu, paper) launcher= (here, slurm, local, basic) out= only=[TRIAL,...] images= parallel= dry= estimate=
report=;
every other key applies to the pretraining of all trials (seed=, train.batch=, device=, ...), and keys that begin with
`probe.` to their probes. Writes OUT/rows.jsonl (a line for each finished trial), OUT/others.jsonl (baselines, MAE),
OUT/pictures and the report. The same command again resumes, within a trial too. If a trial fails, the others still
run, and the exit code is that of the first failure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.app.ablation.ablation_dir import AblationDir
from ldae.app.ablation.cost import probing_seconds, training_seconds
from ldae.app.ablation.grid import chosen, grid_of, own_grid, trials_of
from ldae.app.ablation.hours import cores
from ldae.app.ablation.launcher import launch
from ldae.app.ablation.report import write
from ldae.app.ablation.runner import Machine, Runner, begun, jobs_of, sentence, unhindered
from ldae.app.ablation.trials import Budget, PlannedTrial, baseline_trials, check, plan
from ldae.app.compose import compose, require, resolved
from ldae.app.session import own_settings
from ldae.config.schema import construct
from ldae.core.errors import ConfigError, Fault
from ldae.core.types import Count, PossiblyEmpty
from ldae.engine.runtime import resolve_device
from ldae.engine.signals import StopFlag
from linear_probe.rows import Row

OWN = ("grid", "budget", "launcher", "data", "out", "only", "images", "dry", "parallel", "estimate", "report")
LENGTH = ("train.steps", "train.epochs")


@dataclass(frozen=True)
class AblateSettings:
    """Configure an ablation.

    Attributes:
        out: folder of the ablation; runs/ablate if None.
        only: names of the trials to run; all if empty.
        images: images seen by each trial in pretraining; the budget's if None.
        dry: print the plan and its cost, and run nothing.
        parallel: number of trials that run at the same time; the budget's if None.
        estimate: time a few steps where no trial is finished.
        report: write the report at the end.
    """

    out: str | None
    only: PossiblyEmpty[str]
    images: Count | None
    dry: bool
    parallel: Count | None
    estimate: bool
    report: bool


def main(argv: Sequence[str]) -> None:
    """Run `ldae ablate`."""
    config, user = understood(argv)
    require(argv, grid="deconstruct")
    settings: AblateSettings = own_settings(AblateSettings, config)
    ablation_dir = AblationDir(Path(settings.out or "runs/ablate"))
    plans = plans_of(config, settings, user)
    rows = {p.trial.name: ablation_dir.finished(p) for p in plans}
    missing = [p for p in plans if rows[p.trial.name] is None]
    for planned in missing:
        check(planned)
    parallel = settings.parallel or construct(Budget, config["budget"], {}).parallel
    tell_plan(plans, rows, ablation_dir, str(config["budget"]["name"]))
    tell_cost([row for row in rows.values() if row], missing, parallel, settings.estimate)
    if settings.dry:
        return
    ablation_dir.open()
    if missing and config["launcher"]["cluster"]:
        teller = Teller(ablation_dir, len(missing))
        launch(config["launcher"], ablation_dir, argv, jobs_of(missing), teller)
    else:
        teller = run(missing, ablation_dir, str(config["budget"]["name"]), parallel)
    if ablation_dir.collect()[0] and settings.report:
        write(ablation_dir.out)
    if teller.failures:
        raise unfinished(teller.failures, len(plans))


def understood(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The ablation's config, and the words that are for its cells.

    Raises:
        ConfigError: a word is for the length of pretraining, which the budget says.
    """
    own, user = [], []
    grid: dict[str, Any] | None = None
    for word in argv:
        key, _, value = word.partition("=")
        if key in LENGTH:
            raise ConfigError(key, value, "is the budget's to say; give images= for another length")
        if key == "grid" and value.endswith((".yaml", ".yml")):
            grid = own_grid(value)
            continue
        if key.split(".")[0] in OWN:
            own.append(word)
        if key.split(".")[0] == "data" or key.split(".")[0] not in OWN:
            user.append(word)
    config = resolved(compose("ablate", own))
    return {**config, "grid": grid or config["grid"]}, user


def plans_of(config: Mapping[str, Any], settings: AblateSettings, user: Sequence[str]) -> list[PlannedTrial]:
    """Every wanted cell, composed; nothing is run or read yet."""
    budget: Budget = construct(Budget, config["budget"], {})
    name = str(config["grid"].get("name"))
    grid = grid_of(config["grid"], budget.grids.get(name, {}))
    trials = chosen([*trials_of(grid), *baseline_trials(grid.name, budget)], settings.only)
    images = settings.images or budget.images_of(grid.name)
    return [plan(trial, budget, images, user) for trial in trials]


def tell_plan(
    plans: Sequence[PlannedTrial], rows: Mapping[str, Row | None], ablation_dir: AblationDir, budget: str
) -> None:
    """Prints every cell and how far it is."""
    images = sorted({p.images for p in plans})
    each = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    print(f"grid {plans[0].trial.grid}, budget {budget}: {len(plans)} cells, {each} images each, in {ablation_dir.out}")
    width = max(len(p.trial.name) for p in plans)
    for planned in plans:
        steps = planned.config["train"]["steps"]
        made = begun(ablation_dir, planned)
        state = "done" if rows[planned.trial.name] else f"{made} of {steps} steps" if made else "missing"
        print(f"  {planned.trial.name:{width}}  {state}{'  (beside the grid)' if planned.trial.is_baseline else ''}")


def tell_cost(done: Sequence[Row], missing: Sequence[PlannedTrial], parallel: int, estimate: bool) -> None:
    """Print how long the missing cells take here, training and probing.

    Training is estimated from finished cells, else from a few steps of each; probing from a few images.
    """
    runs = len(jobs_of(missing))
    if not missing:
        print("nothing is missing", flush=True)
        return
    if not estimate:
        print(f"{runs} runs are missing; what they cost was not estimated", flush=True)
        return
    threads = max(1, cores() // parallel)
    if done:
        each = sum(row.hours * (1 if row.unit == "GPU" else 1 / cores()) for row in done) / len(done)
        training, basis = 3600 * runs * each, f"after the mean of the {len(done)} finished cells"
    else:
        training = training_seconds(missing, threads) / parallel
        basis = "after a few steps of each, tokenizers included"
    try:
        probing = probing_seconds(missing, threads) / parallel
    except Fault as fault:
        print(f"about {minutes(training)} of training here for the {runs} runs that are missing, {basis}; "
              f"probing comes on top and cannot be estimated: {fault}", flush=True)  # fmt: skip
        return
    whole = minutes(training + probing)
    print(f"about {whole} here for the {len(missing)} cells that are missing: {minutes(training)} "
          f"of training ({runs} runs, {basis}) and {minutes(probing)} of probing", flush=True)  # fmt: skip


def minutes(seconds: float) -> str:
    """Return a time in minutes, two digits of it at least."""
    return f"{seconds / 60:.0f} min" if seconds >= 570 else f"{seconds / 60:.2g} min"


class Teller:
    """Tells each cell that ends in a line, whichever thread it ran in."""

    def __init__(self, ablation_dir: AblationDir, total: int):
        self.ablation_dir, self.total, self.ended = ablation_dir, total, 0
        self.failures: list[tuple[PlannedTrial, Fault]] = []
        self.guard = threading.Lock()

    def __call__(self, planned: PlannedTrial, outcome: Row | Fault, seconds: float) -> None:
        with self.guard:
            self.ended += 1
            if isinstance(outcome, Fault):
                self.failures.append((planned, outcome))
                log = self.ablation_dir.log(planned)
                message = f"{planned.trial.name}: FAILED, {outcome}" + (
                    f"; what it said: {log}" if log.exists() else ""
                )
            else:
                message = sentence(planned, outcome, seconds)
            print(f"[{self.ended}/{self.total}] {message}", flush=True)


def run(missing: Sequence[PlannedTrial], ablation_dir: AblationDir, budget: str, parallel: int) -> Teller:
    """Runs cells here, `parallel` side by side, and tells how each ended.

    Raises:
        Interrupted: a signal came; the same command goes on.
    """
    stop, teller = StopFlag(), Teller(ablation_dir, len(missing))
    if not missing:
        return teller
    config = missing[0].config
    threads = config["runtime"]["threads"] or max(1, cores() // parallel)
    machine = Machine(threads, resolve_device(str(config["device"])), stop)
    runner = Runner(ablation_dir, budget, machine)
    with stop.listening(), ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(work, runner, job, teller) for job in unhindered(jobs_of(missing))]:
            future.result()
    return teller


def work(runner: Runner, job: Sequence[PlannedTrial], teller: Teller) -> None:
    """Runs the cells of one pretraining."""
    began = time.monotonic()
    for planned, outcome in runner.run(job):
        teller(planned, outcome, time.monotonic() - began)
        began = time.monotonic()


def unfinished(failures: Sequence[tuple[PlannedTrial, Fault]], total: int) -> Fault:
    """What a call with failed cells ends with: the exit code is the first one's."""
    names = ", ".join(planned.trial.name for planned, _ in failures)
    fault = Fault(f"{len(failures)} of {total} cells failed: {names}; the same command tries them again")
    fault.code = failures[0][1].code
    return fault

"""Run an ablation: print its plan and its cost, then pretrain and probe the missing trials.

    ldae ablate grid=tokenizers data=cifar10 data.root=DIR/cifar10 budget=laptop out=OUT
    ldae ablate grid=FILE.yaml budget=demo out=OUT        # your own grid
    ldae ablate grid=deconstruct ... seeds=[0,1,2]        # mean and deviation over three seeds
    ldae ablate grid=deconstruct ... dry=true             # print the plan and its cost

Keys: grid= (deconstruct, tokenizers, pixel, schedules, targets, depth, level, seeds, or a YAML file) budget= (demo,
laptop, gpu, paper) launcher= (here, slurm, local, basic) out= only=[TRIAL,...] images= parallel= dry= estimate=
report= seeds=;
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
from ldae.app.ablation.grid import grid_of, read_grid, repeat, select_trials, trials_of
from ldae.app.ablation.hours import cores
from ldae.app.ablation.launcher import launch
from ldae.app.ablation.report import write
from ldae.app.ablation.runner import Machine, Runner, completed_steps, describe_trial, jobs_of, order_jobs
from ldae.app.ablation.trials import Budget, PlannedTrial, baseline_trials, check, plan
from ldae.app.compose import compose, require, resolved
from ldae.app.session import root_settings
from ldae.config.schema import construct
from ldae.core.errors import ConfigError, Fault
from ldae.core.types import Count, Natural, PossiblyEmpty
from ldae.engine.runtime import resolve_device
from ldae.engine.signals import StopFlag
from linear_probe.rows import Row

ABLATION_KEYS = (
    "grid",
    "budget",
    "launcher",
    "data",
    "out",
    "only",
    "images",
    "dry",
    "parallel",
    "estimate",
    "report",
    "seeds",
)
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
        seeds: seeds that every trial is repeated with; the report has means and deviations. None repeats nothing.
    """

    out: str | None
    only: PossiblyEmpty[str]
    images: Count | None
    dry: bool
    parallel: Count | None
    estimate: bool
    report: bool
    seeds: PossiblyEmpty[Natural]


def main(argv: Sequence[str]) -> None:
    """Run `ldae ablate`."""
    config, user = parse_arguments(argv)
    require(argv, grid="deconstruct")
    settings: AblateSettings = root_settings(AblateSettings, config)
    ablation_dir = AblationDir(Path(settings.out or "runs/ablate"))
    plans = plan_trials(config, settings, user)
    rows = {p.trial.label: ablation_dir.finished_row(p) for p in plans}
    missing = [p for p in plans if rows[p.trial.label] is None]
    for planned in missing:
        check(planned)
    parallel = settings.parallel or construct(Budget, config["budget"], {}).parallel
    report_plan(plans, rows, ablation_dir, str(config["budget"]["name"]))
    report_cost([row for row in rows.values() if row], missing, parallel, settings.estimate)
    if settings.dry:
        return
    ablation_dir.open()
    if missing and config["launcher"]["cluster"]:
        reporter = Reporter(ablation_dir, len(missing))
        launch(config["launcher"], ablation_dir, argv, jobs_of(missing), reporter)
    else:
        reporter = run(missing, ablation_dir, str(config["budget"]["name"]), parallel)
    if ablation_dir.collect()[0] and settings.report:
        write(ablation_dir.out)
    if reporter.failures:
        raise failure_of(reporter.failures, len(plans))


def parse_arguments(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split the arguments into the ablation's config and the overrides of its trials.

    Raises:
        ConfigError: an argument sets the length of pretraining, which the budget determines.
    """
    ablation_argv, user = [], []
    grid: dict[str, Any] | None = None
    for word in argv:
        key, _, value = word.partition("=")
        if key in LENGTH:
            raise ConfigError(key, value, "is determined by the budget; give images= for another length")
        if key == "grid" and value.endswith((".yaml", ".yml")):
            grid = read_grid(value)
            continue
        if key.split(".")[0] in ABLATION_KEYS:
            ablation_argv.append(word)
        if key.split(".")[0] == "data" or key.split(".")[0] not in ABLATION_KEYS:
            user.append(word)
    config = resolved(compose("ablate", ablation_argv))
    return {**config, "grid": grid or config["grid"]}, user


def plan_trials(config: Mapping[str, Any], settings: AblateSettings, user: Sequence[str]) -> list[PlannedTrial]:
    """Compose the config of every selected trial, without reading data."""
    budget: Budget = construct(Budget, config["budget"], {})
    name = str(config["grid"].get("name"))
    grid = grid_of(config["grid"], budget.grids.get(name, {}))
    trials = select_trials([*trials_of(grid), *baseline_trials(grid.name, budget)], settings.only)
    if len(set(settings.seeds)) < len(settings.seeds):
        raise ConfigError("seeds", settings.seeds, "must differ from each other")
    images = settings.images or budget.images_of(grid.name)
    return [plan(trial, budget, images, user) for trial in repeat(trials, settings.seeds)]


def report_plan(
    plans: Sequence[PlannedTrial], rows: Mapping[str, Row | None], ablation_dir: AblationDir, budget: str
) -> None:
    """Print every trial and its state."""
    images = sorted({p.images for p in plans})
    each = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    print(
        f"grid {plans[0].trial.grid}, budget {budget}: {len(plans)} trials, {each} images each, in {ablation_dir.out}"
    )
    width = max(len(p.trial.label) for p in plans)
    for planned in plans:
        steps = planned.config["train"]["steps"]
        steps_done = completed_steps(ablation_dir, planned)
        state = "done" if rows[planned.trial.label] else f"{steps_done} of {steps} steps" if steps_done else "missing"
        print(f"  {planned.trial.label:{width}}  {state}{'  (baseline)' if planned.trial.is_baseline else ''}")


def report_cost(done: Sequence[Row], missing: Sequence[PlannedTrial], parallel: int, estimate: bool) -> None:
    """Print the estimated time of the missing trials on this machine, training and probing.

    The estimate of training uses finished trials, else a few timed steps of each; that of probing a few images.
    """
    runs = len(jobs_of(missing))
    if not missing:
        print("nothing is missing", flush=True)
        return
    if not estimate:
        print(f"{runs} runs are missing; their cost was not estimated", flush=True)
        return
    threads = max(1, cores() // parallel)
    if done:
        each = sum(row.hours * (1 if row.unit == "GPU" else 1 / cores()) for row in done) / len(done)
        training, basis = 3600 * runs * each, f"from the mean of the {len(done)} finished trials"
    else:
        training = training_seconds(missing, threads) / parallel
        basis = "from a few steps of each, tokenizers included"
    try:
        probing = probing_seconds(missing, threads) / parallel
    except Fault as fault:
        print(f"about {minutes(training)} of training here for the {runs} missing runs, {basis}; "
              f"the time of probing cannot be estimated: {fault}", flush=True)  # fmt: skip
        return
    whole = minutes(training + probing)
    print(f"about {whole} here for the {len(missing)} missing trials: {minutes(training)} "
          f"of training ({runs} runs, {basis}) and {minutes(probing)} of probing", flush=True)  # fmt: skip


def minutes(seconds: float) -> str:
    """Return a time in minutes, with at least two digits."""
    return f"{seconds / 60:.0f} min" if seconds >= 570 else f"{seconds / 60:.2g} min"


class Reporter:
    """Print a line for each trial that ends, from any thread.

    Args:
        ablation_dir: folder of the ablation.
        total: number of trials.

    Attributes:
        failures: trials that failed, each with its fault.
    """

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
                message = f"{planned.trial.label}: FAILED, {outcome}" + (f"; log: {log}" if log.exists() else "")
            else:
                message = describe_trial(planned, outcome, seconds)
            print(f"[{self.ended}/{self.total}] {message}", flush=True)


def run(missing: Sequence[PlannedTrial], ablation_dir: AblationDir, budget: str, parallel: int) -> Reporter:
    """Run trials on this machine, `parallel` at a time, and report each outcome.

    Raises:
        Interrupted: a signal came; the same command resumes.
    """
    stop, reporter = StopFlag(), Reporter(ablation_dir, len(missing))
    if not missing:
        return reporter
    config = missing[0].config
    threads = config["runtime"]["threads"] or max(1, cores() // parallel)
    machine = Machine(threads, resolve_device(str(config["device"])), stop)
    runner = Runner(ablation_dir, budget, machine)
    with stop.listening(), ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(run_job, runner, job, reporter) for job in order_jobs(jobs_of(missing))]:
            future.result()
    return reporter


def run_job(runner: Runner, job: Sequence[PlannedTrial], reporter: Reporter) -> None:
    """Run the trials that share one pretraining."""
    start = time.monotonic()
    for planned, outcome in runner.run(job):
        reporter(planned, outcome, time.monotonic() - start)
        start = time.monotonic()


def failure_of(failures: Sequence[tuple[PlannedTrial, Fault]], total: int) -> Fault:
    """Return the fault of a call with failed trials; its exit code is that of the first failure."""
    names = ", ".join(planned.trial.label for planned, _ in failures)
    fault = Fault(f"{len(failures)} of {total} trials failed: {names}; the same command runs them again")
    fault.code = failures[0][1].code
    return fault

"""Runs an ablation: plans its cells, says what they will cost, pretrains and probes those that are missing.

    python tools/ablate.py grid=tokenizers data=cifar10 data.root=DIR/cifar10 budget=laptop out=OUT
    python tools/ablate.py grid=FILE.yaml budget=demo out=OUT        # a grid of your own
    python tools/ablate.py grid=deconstruct ... dry=true             # the plan and its cost alone
    python tools/ablate.py report out=OUT                            # the report again

Keys: grid= (deconstruct, tokenizers, pixel, schedules, targets, depth, level, seeds, or a YAML file) budget= (demo,
laptop, gpu, paper) out= only=[CELL,...] images= parallel= dry= estimate= report= launcher= (here, slurm, local, basic);
every other key goes to the pretraining of all cells (seed=, train.batch=, device=, ...), one that begins with
`probe.` to their probes. Leaves OUT/rows.jsonl (a line for each finished cell), OUT/others.jsonl (floors, MAE),
OUT/pictures and the report. The same command again goes on where it stopped, within a cell too. A cell that fails is
reported and the rest goes on; the exit code is then the first one's that failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _cells import Machine, Runner, begun, jobs_of, sentence, unhindered
from _cli import compose, require, resolved, run_tool
from _cost import training_seconds
from _cost_probe import probing_seconds
from _grid import cells_of, chosen, grid_of, own_grid
from _jobs import launch
from _plan import Budget, Planned, beside, check, plan
from _rows import Place, rows_in
from _session import own_settings
from _spent import cores

from ldae.engine.runtime import pick_device
from ldae.engine.signals import StopFlag
from ldae.errors import ConfigError, DataError, Fault
from ldae.parts import Count, PossiblyEmpty, construct
from ldae.system import System
from linear_probe.agreement import agreements
from linear_probe.rows import Row

OWN = ("grid", "budget", "launcher", "data", "out", "only", "images", "dry", "parallel", "estimate", "report")
LENGTH = ("train.steps", "train.epochs")
SCHEDULES = ("ddpm_linear", "linear_gamma2", "linear_sigma", "constant_sigma")  # of the path


@dataclass(frozen=True)
class AblateSettings:
    """How an ablation is run.

    Attributes:
        out: its folder; runs/ablate if None.
        only: cells that are wanted; all if empty.
        images: seen by each cell in pretraining; the budget's if None.
        dry: whether the plan is all.
        parallel: cells side by side; the budget's if None.
        estimate: whether steps are timed where no cell is finished.
        report: whether the report is written in the end.
    """

    out: str | None
    only: PossiblyEmpty[str]
    images: Count | None
    dry: bool
    parallel: Count | None
    estimate: bool
    report: bool


def main(words: Sequence[str]) -> None:
    """Plans, says what it costs, runs, reports."""
    if words and words[0] == "report":
        settings: AblateSettings = own_settings(AblateSettings, resolved(compose("ablate", words[1:])))
        report(Path(settings.out or "runs/ablate"))
        return
    config, user = understood(words)
    require(words, grid="deconstruct")
    settings = own_settings(AblateSettings, config)
    place = Place(Path(settings.out or "runs/ablate"))
    plans = plans_of(config, settings, user)
    rows = {p.cell.name: place.finished(p) for p in plans}
    missing = [p for p in plans if rows[p.cell.name] is None]
    for planned in missing:
        check(planned)
    parallel = settings.parallel or construct(Budget, config["budget"], {}).parallel
    tell_plan(plans, rows, place, str(config["budget"]["name"]))
    tell_cost([row for row in rows.values() if row], missing, parallel, settings.estimate)
    if settings.dry:
        return
    place.open()
    if missing and config["launcher"]["plugin"]:
        teller = Teller(place, len(missing))
        launch(config["launcher"], place, words, jobs_of(missing), teller)
    else:
        teller = run(missing, place, str(config["budget"]["name"]), parallel)
    if place.collect()[0] and settings.report:
        report(place.out)
    if teller.failures:
        raise unfinished(teller.failures, len(plans))


def understood(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The ablation's config, and the words that are for its cells.

    Raises:
        ConfigError: a word is for the length of pretraining, which the budget says.
    """
    own, user = [], []
    grid: dict[str, Any] | None = None
    for word in words:
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


def plans_of(config: Mapping[str, Any], settings: AblateSettings, user: Sequence[str]) -> list[Planned]:
    """Every wanted cell, composed; nothing is run or read yet."""
    budget: Budget = construct(Budget, config["budget"], {})
    name = str(config["grid"].get("name"))
    grid = grid_of(config["grid"], budget.grids.get(name, {}))
    cells = chosen([*cells_of(grid), *beside(grid.name, budget)], settings.only)
    images = settings.images or budget.images_of(grid.name)
    return [plan(cell, budget, images, user) for cell in cells]


def tell_plan(plans: Sequence[Planned], rows: Mapping[str, Row | None], place: Place, budget: str) -> None:
    """Prints every cell and how far it is."""
    images = sorted({p.images for p in plans})
    each = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    print(f"grid {plans[0].cell.grid}, budget {budget}: {len(plans)} cells, {each} images each, in {place.out}")
    width = max(len(p.cell.name) for p in plans)
    for planned in plans:
        steps = planned.config["train"]["steps"]
        made = begun(place, planned)
        state = "done" if rows[planned.cell.name] else f"{made} of {steps} steps" if made else "missing"
        print(f"  {planned.cell.name:{width}}  {state}{'  (beside the grid)' if planned.cell.beside else ''}")


def tell_cost(done: Sequence[Row], missing: Sequence[Planned], parallel: int, estimate: bool) -> None:
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

    def __init__(self, place: Place, total: int):
        self.place, self.total, self.ended = place, total, 0
        self.failures: list[tuple[Planned, Fault]] = []
        self.guard = threading.Lock()

    def __call__(self, planned: Planned, outcome: Row | Fault, seconds: float) -> None:
        with self.guard:
            self.ended += 1
            if isinstance(outcome, Fault):
                self.failures.append((planned, outcome))
                log = self.place.log(planned)
                told = f"{planned.cell.name}: FAILED, {outcome}" + (f"; what it said: {log}" if log.exists() else "")
            else:
                told = sentence(planned, outcome, seconds)
            print(f"[{self.ended}/{self.total}] {told}", flush=True)


def run(missing: Sequence[Planned], place: Place, budget: str, parallel: int) -> Teller:
    """Runs cells here, `parallel` side by side, and tells how each ended.

    Raises:
        Interrupted: a signal came; the same command goes on.
    """
    stop, teller = StopFlag(), Teller(place, len(missing))
    if not missing:
        return teller
    config = missing[0].config
    threads = config["runtime"]["threads"] or max(1, cores() // parallel)
    machine = Machine(threads, pick_device(str(config["device"])), stop)
    runner = Runner(place, budget, machine)
    with stop.listening(), ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(work, runner, job, teller) for job in unhindered(jobs_of(missing))]:
            future.result()
    return teller


def work(runner: Runner, job: Sequence[Planned], teller: Teller) -> None:
    """Runs the cells of one pretraining."""
    began = time.monotonic()
    for planned, outcome in runner.run(job):
        teller(planned, outcome, time.monotonic() - began)
        began = time.monotonic()


def unfinished(failures: Sequence[tuple[Planned, Fault]], total: int) -> Fault:
    """What a call with failed cells ends with: the exit code is the first one's."""
    names = ", ".join(planned.cell.name for planned, _ in failures)
    fault = Fault(f"{len(failures)} of {total} cells failed: {names}; the same command tries them again")
    fault.code = failures[0][1].code
    return fault


def report(out: Path) -> None:
    """Writes the report of a folder, and prints whether its rows stand in the paper's order.

    Raises:
        DataError: the rows cannot stand in one report.
    """
    rows, others = rows_in(out)
    for agreement in agreements(rows):
        print(agreement)
    from linear_probe.report import Unreportable, write_report

    grids = ", ".join(dict.fromkeys(row.grid for row in rows))
    data = ", ".join(dict.fromkeys(result.data for row in rows for result in row.results))
    try:
        write_report(rows, others, out, out, f"Ablations on {data}: {grids}", curves())
    except Unreportable as error:
        raise DataError(f"out={out}: {error}") from None
    files = {file for row in rows for file in row.pictures.values()}
    if missing := sum(not (out / file).is_file() for file in files):
        print(f"{missing} of {len(files)} pictures are missing; the report has a note in the place of each", flush=True)
    print(f"report: {out / 'index.html'}", flush=True)


def curves() -> dict[str, list[float]]:
    """The path's noise schedules: their share of signal, gamma^2 / (gamma^2 + sigma^2), at every step."""
    found = {}
    for name in SCHEDULES:
        schedule = System(resolved(compose("pretrain", [f"schedule={name}"])))["schedule"]
        level = schedule.at(torch.arange(schedule.T))
        signal, noise = level.gamma.double() ** 2, level.sigma.double() ** 2
        found[name] = (signal / (signal + noise)).tolist()
    return found


if __name__ == "__main__":
    run_tool(main)

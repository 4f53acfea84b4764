"""Run the trials of an ablation: pretraining, probe and pictures, each in its own process."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldae.app.ablation.ablation_dir import AblationDir
from ldae.app.ablation.denoising_images import INDEX
from ldae.app.ablation.hours import hours
from ldae.app.ablation.trials import PlannedTrial
from ldae.app.compose import user_cache
from ldae.app.overrides import argument
from ldae.app.probing.tables import data_source, warn_of_labels
from ldae.app.provenance import commit
from ldae.app.session import Session
from ldae.core.errors import Fault, Interrupted, OutputError
from ldae.core.files import json_hash, read_sealed_json
from ldae.engine.run_folder import RunFolder
from ldae.engine.signals import StopFlag
from ldae.export.encoder import TOKENIZER_FILE
from linear_probe.results import Result, read_results
from linear_probe.rows import Row

# {program of a child process: arguments of `python`}
PROGRAMS = {
    "pretrain": ["-m", "ldae", "pretrain"],
    "probe": ["-m", "ldae", "probe"],
    "denoising-images": ["-m", "ldae.app.ablation.denoising_images"],
}
HELD = "is held by another process"
LONGEST_WAIT = 20.0  # seconds between two attempts to lock a folder
PLACEHOLDERS = {"data.root": "DIR", "blend_dataset.root": "DIR", "data.cache": "CACHE", "out": "RUN", "run": "RUN"}
BARE = re.compile(r"[\w@%+=:,./\[\]-]+")  # needs no quotes in bash
PLACEHOLDERS |= dict.fromkeys(("mae", "cold", "site", "images", "jpegs"), "DIR")  # of python tools/bench


@dataclass(frozen=True)
class Machine:
    """Resources of a trial's processes.

    Attributes:
        threads: CPU threads of each process.
        device: device of pretraining and probe.
        stop: flag that signals set.
    """

    threads: int
    device: str
    stop: StopFlag

    @property
    def argv(self) -> list[str]:
        """Return the arguments that set threads, progress and device of a command."""
        return [f"runtime.threads={self.threads}", "runtime.progress=false", f"device={self.device}"]


class Runner:
    """Runs trials and writes their records.

    Args:
        ablation_dir: folder of the ablation.
        budget: name of the budget.
        machine: resources of each process.
    """

    def __init__(self, ablation_dir: AblationDir, budget: str, machine: Machine):
        self.ablation_dir, self.budget, self.machine = ablation_dir, budget, machine
        self.training: dict[str, threading.Lock] = {}  # one run trains a tokenizer, others wait for it
        self.guard = threading.Lock()
        self.scorable: set[str] = set()  # keys of data sets whose labels were checked

    def run(self, job: Sequence[PlannedTrial]) -> Iterator[tuple[PlannedTrial, Row | Fault]]:
        """Run the trials that share one pretraining, and yield each with its row or its fault.

        Raises:
            Interrupted: a signal came; what was started is saved.
        """
        first, run = job[0], self.ablation_dir.run(job[0])
        try:
            self.check_labels(first)
            self.pretrain(first, run)
        except Interrupted:
            raise
        except Fault as fault:
            yield from ((planned, fault) for planned in job)
            return
        for planned in job:
            try:
                yield planned, self._probe(planned, run)
            except Interrupted:
                raise
            except Fault as fault:
                yield planned, fault

    def check_labels(self, planned: PlannedTrial) -> None:
        """Read the labels of a trial's data, each data set once, before hours of training.

        Raises:
            DataError: they leave a probe nothing to score.
        """
        key = json_hash(planned.config["data"])
        with self.guard:
            if key in self.scorable:
                return
            session = Session({**planned.config, "runtime": {"threads": 0, "progress": False}})
            session.stop = self.machine.stop
            try:
                splits = session.splits()
            except Interrupted:
                raise
            except Fault:
                return  # pretraining reports it in the trial's log
            train, holdout, test = (images.own_labels for images in (splits.train, splits.holdout, splits.test))
            warn_of_labels(data_source(planned.config["data"]), train, holdout, test, splits.classes)
            self.scorable.add(key)

    def pretrain(self, planned: PlannedTrial, run: Path, on_wait: Callable[[], None] = lambda: None) -> None:
        """Pretrain a trial, or continue it; one trial at a time trains a tokenizer that several need.

        Args:
            planned: the trial.
            run: folder of its run.
            on_wait: called repeatedly while it runs.

        Raises:
            Interrupted: a signal came; the run is saved.
            Fault: it failed.
        """
        argv = [*planned.overrides, argument("out", run), *self.machine.argv]
        if planned.tokenizer_key is None or (run / TOKENIZER_FILE).exists():
            self._call("pretrain", argv, planned, on_wait)
            return
        with self.guard:
            lock = self.training.setdefault(planned.tokenizer_key, threading.Lock())
        with contextlib.ExitStack() as held:
            held.enter_context(lock)

            def release_tokenizer() -> None:
                on_wait()
                if (run / TOKENIZER_FILE).exists():
                    held.close()

            self._call("pretrain", argv, planned, release_tokenizer)

    def score(self, planned: PlannedTrial, run: Path, baselines: bool = False) -> list[Result]:
        """Probe a pretrained trial, and return the results.

        Raises:
            Interrupted, Fault: as of `pretrain`.
        """
        trial = planned.trial
        folder = run / f"probe-{trial.grid}-{trial.label}"
        argv = [argument("run", run), argument("out", folder), f"baselines={str(baselines).lower()}"]
        self._call("probe", [*argv, *planned.probe, *self.machine.argv], planned)
        written = max(folder.glob("results*.jsonl"), key=lambda path: path.stat().st_mtime)  # of the selected split
        results = [self._named(r, trial.name) for r in read_results(written)]
        shutil.rmtree(folder / "features", ignore_errors=True)  # large, and fast to compute again
        return results

    def _probe(self, planned: PlannedTrial, run: Path) -> Row:
        """Probe a pretrained trial, draw its pictures and write its record."""
        results = self.score(planned, run, planned.trial.with_baselines)
        drawn = self.ablation_dir.pictures(planned)
        if not (drawn / INDEX).exists():
            drawn.parent.mkdir(parents=True, exist_ok=True)
            self._call("denoising-images", [f"run={run}", f"out={drawn}"], planned)
        row = self._row(planned, run, [r for r in results if r.checkpoint != "none"], drawn)
        self.ablation_dir.keep(planned, row, [r for r in results if r.checkpoint == "none"])
        return row

    @staticmethod
    def _named(result: Result, trial: str) -> Result:
        """Return a result with the trial's name in its encoder's name."""
        encoder = result.encoder.replace("the same network", f"the network of {trial}")
        return replace(result, encoder=encoder, command=portable_command(result.command))

    def _row(self, planned: PlannedTrial, run: Path, results: Sequence[Result], drawn: Path) -> Row:
        trial = planned.trial
        total, unit = hours(run, user_cache(planned.config["data"].get("cache")), self.machine.device)
        index = read_sealed_json(drawn / INDEX)
        return Row(
            grid=trial.grid,
            trial=trial.name,
            axes=dict(trial.axes),
            results=results,
            paper=trial.paper,
            paper_source=trial.paper_source,
            budget=self.budget,
            images=planned.images,
            hours=total,
            unit=unit,
            command=portable_command(shlex.join(["ldae", "pretrain", *planned.overrides, f"out={run}"])),
            commit=commit(),
            pictures={
                title: (drawn / file).relative_to(self.ablation_dir.out).as_posix() for title, file in index.items()
            },
        )

    def _call(
        self, tool: str, argv: Sequence[str], planned: PlannedTrial, on_wait: Callable[[], None] = lambda: None
    ) -> None:
        """Run a command to its end, and wait while another process holds its folder.

        Args:
            tool: key of PROGRAMS.
            argv: arguments of the command.
            planned: trial whose log collects the output.
            on_wait: called repeatedly while the command runs.

        Raises:
            Interrupted: a signal came.
            Fault: it failed; message and exit code are those of the command.
        """
        wait = 1.0
        while True:
            self.machine.stop.poll()
            code, message = run_child(PROGRAMS[tool], argv, self.ablation_dir.log(planned), self.machine.stop, on_wait)
            if self.machine.stop.signal_name:
                self.machine.stop.poll()
            if not code:
                return
            if code != OutputError.code or HELD not in message:
                raise wrap_failure(tool, code, message)
            until, wait = time.monotonic() + wait, min(LONGEST_WAIT, 2 * wait)
            while time.monotonic() < until:
                self.machine.stop.poll()
                time.sleep(0.2)


def run_child(
    program: Sequence[str], argv: Sequence[str], log: Path, stop: StopFlag, on_wait: Callable[[], None]
) -> tuple[int, str]:
    """Run Python in a child process, append its output to a log, and forward signals.

    Returns:
        The exit code, and the last error message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {portable_command(shlex.join(['ldae', *program[2:], *argv]))}\n")
        file.flush()
        start = file.tell()
        child = subprocess.Popen([sys.executable, *program, *argv], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        terminated = False
        while child.poll() is None:
            on_wait()
            if stop.signal_name and not terminated:
                child.terminate()  # pretraining saves a checkpoint
                terminated = True
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    return child.returncode, last_error(log, start)


def last_error(log: Path, start: int = 0) -> str:
    """Return the last error message of a log from position `start` on; empty if there is none."""
    if not log.exists():
        return ""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""


def wrap_failure(tool: str, code: int, message: str) -> Fault:
    """Wrap a failed child process in a Fault."""
    outcome = f"ended by signal {-code}" if code < 0 else f"exit {code}"
    fault = Fault(f"{tool} {outcome}" + (f": {message}" if message else ""))
    fault.code = code if code > 0 else Fault.code
    return fault


def portable_command(command: str) -> str:
    """Return a command for bash with placeholders for the paths of this machine."""
    argv = []
    for word in shlex.split(command):
        key, equals, _ = word.partition("=")
        if equals and key in PLACEHOLDERS:
            word = f"{key}={PLACEHOLDERS[key]}"
        argv.append(word)
    return " ".join(word if BARE.fullmatch(word) else shlex.quote(word) for word in argv)


def completed_steps(ablation_dir: AblationDir, planned: PlannedTrial) -> int:
    """Return the number of steps that a trial's pretraining has completed."""
    return int(RunFolder(ablation_dir.run(planned)).status().get("step", 0))


def jobs_of(plans: Sequence[PlannedTrial]) -> list[list[PlannedTrial]]:
    """Group trials by the pretraining that they share, in order."""
    jobs: dict[str, list[PlannedTrial]] = {}
    for planned in plans:
        jobs.setdefault(planned.run_key, []).append(planned)
    return list(jobs.values())


def order_jobs(jobs: Sequence[list[PlannedTrial]]) -> list[list[PlannedTrial]]:
    """Move jobs whose tokenizer an earlier job trains to the end, so that no core idles while it trains."""
    seen: set[str] = set()
    first: list[list[PlannedTrial]] = []
    later: list[list[PlannedTrial]] = []
    for job in jobs:
        key = job[0].tokenizer_key
        (later if key in seen else first).append(job)
        seen.add(key or "")
    return [*first, *later]


def describe_trial(planned: PlannedTrial, row: Row, seconds: float) -> str:
    """Return a line on a finished trial: accuracies and cost."""
    numbers: list[Any] = [f"{r.protocol} {r.accuracy:.2f}" for r in row.results]
    if row.paper is not None:
        numbers.append(f"published {row.paper:g}")
    cost = f"{row.hours:.3g} {row.unit}-hours" + (f", {seconds / 60:.1f} min here" if seconds else "")
    return f"{planned.trial.label}: {', '.join(numbers)} ({cost})"

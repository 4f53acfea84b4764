"""Search keys of pretraining by Optuna: trials of pretraining and probe, and the best of them.

    ldae sweep experiment=ldae/imagefolder_cpu data=photos 'optim.blr=tag(log,interval(1e-3,3e-2))' trials=20 out=OUT
    ldae sweep experiment=ldae/digits 'denoiser=choice(vit_64x4,vit_128x8)' 'data.d=int(interval(4,12))' out=OUT

A key is searched where its value is interval(A,B), tag(log,interval(A,B)), int(interval(A,B)), range(A,B,STEP) or
choice(A,B,...), the words of Hydra's sweeps; quote them for the shell. Every other key applies to the pretraining of
all trials, and keys that begin with `probe.` to their probes. Maximises metric= (linear, knn, knn_whitened) on the
hold-out; the test split stays unread. From the middle of its run on, a trial is stopped where its best online kNN so
far is below the median of the earlier trials at the same evaluation (prune=false stops none). Trials lie in
OUT/study.db, runs in OUT/runs; the same command continues, within a trial too, and trials=N with a larger N adds
trials. Prints the table of the trials and the command of the best; writes OUT/trials.md, OUT/trials.jsonl and
OUT/figures.
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldae.app.ablation.ablation_dir import AblationDir
from ldae.app.ablation.grid import Trial
from ldae.app.ablation.hours import cores
from ldae.app.ablation.runner import Machine, Runner
from ldae.app.ablation.trials import PROBE, PlannedTrial, check, lasting, latest
from ldae.app.compose import compose, require, resolved
from ldae.app.overrides import command as command_of
from ldae.app.precision import settle_precision
from ldae.app.session import root_settings
from ldae.app.sweep.space import EXAMPLES, Dimension, read_space
from ldae.app.sweep.study import SweepStudy, check_optuna
from ldae.app.sweep.summary import write_summary
from ldae.core.errors import ConfigError, Fault, Interrupted, NonFiniteError, UsageError
from ldae.core.files import read_sealed_json, write_sealed_json
from ldae.core.types import Count
from ldae.engine.run_folder import RunFolder, differences
from ldae.engine.runtime import resolve_device
from ldae.engine.signals import StopFlag

if TYPE_CHECKING:
    from optuna import Trial as OptunaTrial

GRID = "sweep"  # name of the trials' grid in their folders
PROTOCOLS = {"linear": "lbfgs", "knn": "knn", "knn_whitened": "knn_whitened"}
SETTINGS = "sweep.json"
PRUNED = "the pruner"  # in place of a signal's name
OF_A_TRIAL = (ConfigError.code, NonFiniteError.code)  # exit codes that are the outcome of a trial's values


@dataclass(frozen=True)
class SweepSettings:
    """Configure a sweep.

    Attributes:
        out: folder of the study, the runs, the table and the figures.
        trials: number of trials in all, those of earlier calls included.
        metric: hold-out accuracy that is maximised.
        prune: stop a trial from the middle of its run on, where its best online kNN so far is below the median of the
            earlier trials.
        startup_trials: trials that are drawn at random, and that finish before any is pruned.
    """

    out: str
    trials: Count
    metric: Literal["linear", "knn", "knn_whitened"]
    prune: bool
    startup_trials: Count


class Sweep:
    """Plans and runs the trials of a sweep.

    Args:
        settings: settings of the command.
        space: the searched keys.
        fixed: overrides of all trials; those that begin with `probe.` are of their probes.
    """

    def __init__(self, settings: SweepSettings, space: Sequence[Dimension], fixed: Sequence[str]):
        self.settings, self.space, self.fixed = settings, space, fixed
        self.out, self.stop = Path(settings.out).expanduser(), StopFlag()
        self.directory = AblationDir(self.out)
        self.scorable: set[str] = set()  # keys of data sets whose labels were checked

    def plan(self, values: Mapping[str, Any], number: int) -> PlannedTrial:
        """Compose the overrides and the config of a trial.

        Raises:
            UsageError, ConfigError: its config is invalid.
        """
        argv = latest([*self.fixed, *(dimension.word(values[dimension.key]) for dimension in self.space)])
        overrides = [word for word in argv if not word.startswith(PROBE)]
        probe = [f"protocols=[{PROTOCOLS[self.settings.metric]}]"]
        probe += [word.removeprefix(PROBE) for word in argv if word.startswith(PROBE)]
        config, _ = settle_precision(resolved(compose("pretrain", overrides)))
        trial = Trial(GRID, f"{number:03}", dict(values), overrides, position=number)
        return PlannedTrial(trial, overrides, [*latest(probe), "split=holdout"], config, 0)

    def check(self) -> dict[str, Any]:
        """Check the config of the first candidates, and of every choice and end of an interval; return the first.

        Raises:
            Fault: a key or value is invalid.
        """
        first = {dimension.key: dimension.extremes[0] for dimension in self.space}
        others = [{**first, d.key: value} for d in self.space for value in d.extremes[1:]]
        for values in [first, *others]:
            check(self.plan(values, 0))
        return dict(self.plan(first, 0).config)

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Write the settings that the trials share, or compare them with those of an earlier call.

        Raises:
            UsageError: the folder holds a sweep with other settings.
        """
        searched = {d.key: d.text for d in self.space}
        kept = {key: value for key, value in lasting(config) if not _is_below(key, searched)}
        probe = [word for word in self.fixed if word.startswith(PROBE)]
        now = {"metric": self.settings.metric, "searched": searched, "config": kept, "probe": probe}
        path = self.out / SETTINGS
        if path.exists():
            changes = differences(read_sealed_json(path), json.loads(json.dumps(now)), ())
            if changes:
                text = "; ".join(f"{key.removeprefix('config.')} was {old!r}, is {new!r}" for key, old, new in changes)
                raise UsageError(f"out={self.out} holds a sweep with other settings: {text}. Give another out=")
        else:
            write_sealed_json(path, now)

    def run(self, study: SweepStudy) -> None:
        """Run the trials that are missing, one after the other.

        Raises:
            Interrupted: a signal came; the same command resumes.
            Fault: a trial failed for a reason other than its values.
        """
        total = self.settings.trials
        while (proposed := study.next(total)) is not None:
            self.stop.poll()
            trial, values = proposed
            title = f"[{trial.number + 1}/{total}] {', '.join(_typed(d, values[d.key]) for d in self.space)}"
            print(title, flush=True)
            start = time.monotonic()
            outcome, notes = self._outcome(study, trial, values)
            study.finish(trial, outcome, seconds=round(time.monotonic() - start, 1), **notes)
            result = f"{self.settings.metric} {outcome:.2f} % on the hold-out" if outcome is not None else "pruned"
            print(f"  {notes.get('error') or result}", flush=True)
            if trial.number + 1 == self.settings.startup_trials and not study.completed():
                break  # the cause is hardly the values; `conclude` names it

    def _outcome(
        self, study: SweepStudy, trial: OptunaTrial, values: Mapping[str, Any]
    ) -> tuple[float | None, dict[str, Any]]:
        """Pretrain and score a trial; return its accuracy, None if it was pruned or failed, and notes on it."""
        try:
            planned = self.plan(values, trial.number)
            run = self.directory.run(planned)
            notes = {"run": run.relative_to(self.out).as_posix()}
            return self._accuracy(study, trial, planned, run), notes
        except Interrupted:
            raise
        except Fault as fault:
            self.stop.poll()  # a terminal sends a signal to both processes
            if fault.code not in OF_A_TRIAL:
                raise
            return None, {"error": str(fault)}

    def _accuracy(self, study: SweepStudy, trial: OptunaTrial, planned: PlannedTrial, run: Path) -> float | None:
        """Return the hold-out accuracy of a trial in percent; None if it was pruned."""
        stop, config = StopFlag(), planned.config
        threads = config["runtime"]["threads"] or cores()
        runner = Runner(self.directory, GRID, Machine(threads, resolve_device(str(config["device"])), stop))
        runner.scorable = self.scorable
        seen = 0

        def watch() -> None:
            nonlocal seen
            stop.signal_name = self.stop.signal_name or stop.signal_name
            accuracies = online_accuracies(run)
            if len(accuracies) > seen:
                seen = len(accuracies)
                study.report(trial, accuracies)
                if self.settings.prune and trial.should_prune():
                    stop.signal_name = stop.signal_name or PRUNED

        try:
            runner.check_labels(planned)
            runner.pretrain(planned, run, watch)
        except Interrupted:
            self.stop.poll()
            if RunFolder(run).status().get("state") != "done":
                return None
            stop.signal_name = ""
        study.report(trial, online_accuracies(run))
        stop.signal_name = self.stop.signal_name
        (result,) = runner.score(planned, run)
        return result.accuracy


def main(argv: Sequence[str]) -> None:
    """Run `ldae sweep`."""
    check_optuna()
    settings, space, fixed = parse_arguments(argv)
    sweep = Sweep(settings, space, fixed)
    config = sweep.check()
    folder = RunFolder(sweep.out)
    if folder.checkpoints.is_dir():
        raise UsageError(f"out={sweep.out} holds a training run; give another folder")
    with sweep.stop.listening():
        folder.acquire()
        try:
            sweep.directory.open()
            sweep.check_same(config)
            warmup = math.ceil(config["monitor"]["num_evals"] / 2)
            study = SweepStudy(sweep.out, space, config["seed"], settings.startup_trials, warmup)
            finished = sum(t.state.is_finished() for t in study.trials)
            print(f"{settings.trials} trials, {finished} of them finished, in {sweep.out}", flush=True)
            try:
                sweep.run(study)
            finally:
                text = write_summary(sweep.out, study, settings.metric, _commands(sweep, study))
        finally:
            folder.release()
    print(f"\n{text}\n")
    conclude(sweep, study)


def parse_arguments(argv: Sequence[str]) -> tuple[SweepSettings, list[Dimension], list[str]]:
    """Split the arguments into the settings of the sweep, the searched keys, and the overrides of all trials.

    Raises:
        UsageError: nothing is searched, or no experiment is named.
    """
    own = set(SweepSettings.__dataclass_fields__)
    sweep_argv = [word for word in argv if word.partition("=")[0] in own]
    space, fixed = read_space([word for word in argv if word not in sweep_argv])
    require(argv, experiment="ldae/imagefolder_cpu")
    if not space:
        raise UsageError(f"no key is searched; give candidates to one, written {EXAMPLES}")
    for word in fixed:
        if word.startswith(f"{PROBE}split=") and word != f"{PROBE}split=holdout":
            raise ConfigError(f"{PROBE}split", word.partition("=")[2], "is fixed: a sweep reads the hold-out alone")
        if word.startswith(f"{PROBE}protocols="):
            raise ConfigError(f"{PROBE}protocols", word.partition("=")[2], "is chosen by metric=")
    settings: SweepSettings = root_settings(SweepSettings, resolved(compose("sweep", sweep_argv)))
    return settings, space, fixed


def online_accuracies(run: Path) -> list[float]:
    """Return the online kNN accuracies of a run in percent, in the order of its evaluations."""
    accuracies = []
    try:
        lines = (run / "metrics.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that is being written
        if isinstance(row, dict) and row.get("monitor") == "knn":
            accuracies.append(float(row["knn_holdout/model"]))
    return accuracies


def conclude(sweep: Sweep, study: SweepStudy) -> None:
    """Print the command of the best trial, and how to score it on the test split.

    Raises:
        Fault: no trial has an accuracy.
    """
    best = study.completed()
    if not best:
        errors = [t.user_attrs["error"] for t in study.trials if "error" in t.user_attrs]
        raise Fault(f"no trial has an accuracy; the first failed with: {errors[0] if errors else 'nothing'}")
    planned = sweep.plan(best[0].params, best[0].number)
    print(f"best: trial {best[0].number}, {best[0].value:.2f} % on the hold-out; pretrain it again, or longer:")
    print(f"  {shlex.join(['ldae', 'pretrain', *planned.overrides, 'out=RUN'])}")
    print(f"score it on the test split:\n  {command_of('probe', run=sweep.directory.run(planned))}")


def _commands(sweep: Sweep, study: SweepStudy) -> dict[int, str]:
    """Return {number: command of its pretraining} of the trials with values."""
    by_number = {
        t.number: [*sweep.fixed, *(d.word(t.params[d.key]) for d in sweep.space if d.key in t.params)]
        for t in study.trials
    }
    return {
        number: shlex.join(["ldae", "pretrain", *(w for w in latest(argv) if not w.startswith(PROBE))])
        for number, argv in by_number.items()
    }


def _is_below(key: str, keys: Mapping[str, Any]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in keys)


def _typed(dimension: Dimension, value: Any) -> str:
    return dimension.word(f"{value:.4g}" if isinstance(value, float) else value)

"""Suites of a benchmark: data sets and tasks, and the measurement of an encoder on each of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.app.overrides import argument
from ldae.app.probing import dense, probe
from ldae.app.probing.external import function_hash, load_function
from ldae.app.training import finetune
from ldae.config.schema import conform
from ldae.core.errors import ConfigError
from ldae.core.files import json_hash, sha256
from ldae.core.types import Natural, PossiblyEmpty
from ldae.export.encoder import find_checkpoint
from ldae.export.timm import WEIGHTS
from linear_probe.results import Result, read_results

UNTRAINED, TIMM, LOCAL, FEATURES = "untrained:", "timm:", "local-dir:", "features:"
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
BASELINES = ("pixels", "pca")
FILE_NAME = re.compile(r"[^\w.@-]+")
ROOT = "{root}"  # in a suite: the folder of `root=`
PROBE, FINETUNE, DENSE = "probe", "finetune", "dense"
COMMAND = "command="  # first argument of a task that is no probe
ON = "on="  # argument of a task that names its data sets, e.g. on=[digits]
OF_MASKS = ("data=horses", "data=segmentation")
BASELINE = "baseline=untrained"


@dataclass(frozen=True)
class BenchmarkSettings:
    """Configure a benchmark.

    Attributes:
        encoders: what is scored: folder of a run or of an export, name of an encoder of the package, `timm:NAME`,
            `timm:NAME@FILE` with weights from a file, `untrained:` before any of them, an .onnx file, MODULE:FUNCTION
            in Python, `features:FOLDER` with a file DATA.npz of features for each data set, `pixels` or `pca`.
        root: folder that stands for {root} in the suite.
        only: names of the data sets to score on; all if empty.
        out: folder for results, tables and cached features.
        seed: seed of heads and label subsets.
    """

    encoders: PossiblyEmpty[str]
    root: str | None
    only: PossiblyEmpty[str]
    out: str
    seed: Natural


@dataclass(frozen=True)
class Suite:
    """Data sets and tasks of a benchmark.

    Attributes:
        name: name of the suite.
        data: {data set: arguments of `ldae probe` that choose it}.
        tasks: {task: arguments of `ldae probe` with its protocols and labels}; of another command if the first is
            `command=finetune` or `command=dense`. With `on=[NAME, ...]` a task is for the data sets of these names.
    """

    name: str
    data: dict
    tasks: dict

    def __post_init__(self) -> None:
        for group in ("data", "tasks"):
            entries = getattr(self, group)
            if not entries:
                raise ConfigError(f"suite.{group}", entries, "names nothing; it needs at least one entry")
            for name, argv in entries.items():
                conform(f"suite.{group}.{name}", argv, list[str])
        for name, argv in self.tasks.items():
            if argv and (command := command_of(argv)) not in (PROBE, FINETUNE, DENSE):
                raise ConfigError(f"suite.tasks.{name}", argv[0], f"has no command {command}; use finetune or dense")
            for data in data_sets_of(argv):
                if data not in self.data:
                    names = ", ".join(self.data)
                    raise ConfigError(f"suite.tasks.{name}", f"{ON}[{data}]", f"is no data set; there are: {names}")


@dataclass(frozen=True)
class Cell:
    """One measurement: an encoder on a data set in a task.

    Attributes:
        encoder, data, task: their names.
        command: PROBE, FINETUNE or DENSE.
        argv: arguments of the command.
        machine: further ones, which results do not depend on: device, threads, folder.
        identity: what the results depend on besides: the hash of the weights.
    """

    encoder: str
    data: str
    task: str
    command: str
    argv: tuple[str, ...]
    machine: tuple[str, ...]
    identity: str

    def path(self, out: Path) -> Path:
        """Return the file of the results: equal for equal measurements."""
        names = "-".join(FILE_NAME.sub("_", name) for name in (self.encoder, self.data, self.task))
        return out / "cells" / f"{names}-{json_hash([self.argv, self.identity])[:10]}.jsonl"

    def results(self, out: Path) -> list[Result] | None:
        """Return the results on disk; None if there are none, or the file is damaged."""
        try:
            return read_results(self.path(out))
        except (OSError, ValueError, TypeError):
            return None

    def score(self) -> list[Result]:
        """Make the measurement, and return its results."""
        argv = [*self.argv, *self.machine]
        return {PROBE: probe.score, FINETUNE: finetune.score_run, DENSE: dense.score}[self.command](argv)


def data_sets_of(task: Sequence[str]) -> list[str]:
    """Return the data sets that a task names; none if it is for all."""
    named = [word.removeprefix(ON).strip("[]") for word in task if word.startswith(ON)]
    return [name.strip() for names in named for name in names.split(",")]


def command_of(task: Sequence[str]) -> str:
    """Return the command of a task."""
    first = str(task[0]) if task else ""
    return first.removeprefix(COMMAND) if first.startswith(COMMAND) else PROBE


def cells_of(config: Mapping[str, Any], settings: BenchmarkSettings, suite: Suite) -> Iterator[Cell]:
    """Yield every measurement, data sets outermost.

    Raises:
        ConfigError: an encoder, data set or root is missing or unknown.
    """
    if not settings.encoders:
        raise ConfigError("encoders", [], "names nothing to score; give e.g. encoders=[RUN,untrained:RUN,pixels,pca]")
    if len(set(settings.encoders)) < len(settings.encoders):
        raise ConfigError("encoders", settings.encoders, "must name each once")
    for name in settings.only:
        if name not in suite.data:
            raise ConfigError("only", name, f"is no data set of suite {suite.name}; there are: {', '.join(suite.data)}")
    encoders = {name: [] if name.startswith(FEATURES) else [encoder_argv(name)] for name in settings.encoders}
    for data in settings.only or suite.data:
        chosen_data = _at_root(data, suite.data[data], settings.root)
        if chosen_data is None:
            continue
        tasks = {task: _at_root(f"{data}, {task}", arguments, settings.root) for task, arguments in suite.tasks.items()}
        for name, encoder in encoders.items():
            for chosen_encoder, identity in encoder or features_argv(name, data):
                of_images = chosen_data if encoder else []
                for task, arguments in tasks.items():
                    if data not in (data_sets_of(arguments or []) or [data]):
                        continue
                    if arguments is not None and _is_possible(chosen_encoder, of_images, arguments):
                        own = [word for word in arguments if not word.startswith((COMMAND, ON))]
                        command = command_of(arguments)
                        argv = [*_of_command(command, chosen_encoder), *of_images, *own]
                        argv += _shared(command, config, settings)
                        folder = _folder(command, settings, (name, data, task), json_hash([argv, identity])[:10])
                        machine = _machine(command, config)
                        yield Cell(name, data, task, command, tuple(argv), (folder, *machine), identity)


def _shared(command: str, config: Mapping[str, Any], settings: BenchmarkSettings) -> list[str]:
    """Return the arguments that all cells of a command share, which results depend on."""
    seed, precision = f"seed={settings.seed}", f"precision={config['precision']}"
    return {FINETUNE: [seed], DENSE: [seed, precision]}.get(command, [seed, precision, "baselines=false"])


def _machine(command: str, config: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a command that results do not depend on."""
    machine = [f"device={config['device']}"]
    machine += [f"runtime.{key}={str(value).lower()}" for key, value in config["runtime"].items()]
    return (
        machine if command != PROBE else [*machine, f"batch={'null' if config['batch'] is None else config['batch']}"]
    )


def _folder(command: str, settings: BenchmarkSettings, names: tuple[str, str, str], key: str) -> str:
    """Return the folder of a cell's features, which tasks share, or of its training, which goes on where it stopped."""
    encoder, data, task = (FILE_NAME.sub("_", name) for name in names)
    out = Path(settings.out).expanduser()
    trained = out / "trained" / encoder / data / f"{task}-{key}"
    return argument("out", trained if command == FINETUNE else out / "features" / encoder / data)


def _of_command(command: str, encoder: Sequence[str]) -> list[str]:
    """Return the arguments of a command that choose an encoder, from those of `ldae probe`."""
    names = {FINETUNE: "weights=untrained", DENSE: "baseline=untrained"}
    return [names.get(command, word) if word == BASELINE else word for word in encoder]


def _is_possible(encoder: Sequence[str], of_images: Sequence[str], task: Sequence[str]) -> bool:
    """Return whether a task can be scored.

    Files of features have no images, a set no outliers among itself; masks are for segmentation alone; segmentation and
    fine-tuning need a run.
    """
    command, has_masks = command_of(task), bool(set(of_images) & set(OF_MASKS))
    if has_masks != (command == DENSE) or (command != PROBE and not encoder[0].startswith("run=")):
        return False
    needs_images = any(word.startswith(("corruptions=", "outliers=")) for word in task)
    same = {f"data={word.removeprefix('outliers=')}" for word in task if word.startswith("outliers=")}
    return bool(of_images) >= needs_images and not same & set(of_images)


def features_argv(name: str, data: str) -> list[tuple[list[str], str]]:
    """Return the arguments and hash of FOLDER/DATA.npz for an encoder `features:FOLDER`; none, with a note, without it.

    Raises:
        ConfigError: the folder does not exist.
    """
    folder = Path(name.removeprefix(FEATURES)).expanduser()
    if not folder.is_dir():
        raise ConfigError("encoders", name, f"names no folder: {folder} does not exist")
    file = folder / f"{data}.npz"
    if not file.is_file():
        print(f"{data}: {file} does not exist; left out", file=sys.stderr, flush=True)
        return []
    return [([argument("features", file)], sha256(file))]


def encoder_argv(name: str) -> tuple[list[str], str]:
    """Return the arguments of `ldae probe` that choose an encoder, and the hash of its weights.

    Raises:
        ConfigError: the file of weights does not exist.
        CheckpointError: a run has no checkpoint.
    """
    if name in BASELINES:
        return [f"baseline={name}"], "none"
    if name.startswith(UNTRAINED):
        trained, _ = encoder_argv(name.removeprefix(UNTRAINED))
        return [*(word for word in trained if not word.startswith("checkpoint=")), "baseline=untrained"], "none"
    if name.endswith(".onnx"):
        if not Path(name).expanduser().is_file():
            raise ConfigError("encoders", name, "does not exist; give the .onnx file of an encoder")
        return [argument("onnx", name)], sha256(Path(name).expanduser())
    if FUNCTION.fullmatch(name) and not name.startswith(TIMM):
        return [argument("function", name)], function_hash(load_function(name))
    if (weights := Path(name).expanduser() / WEIGHTS).is_file():  # a folder that `ldae export` wrote
        return [argument("timm", f"{LOCAL}{weights.parent}")], sha256(weights)
    if name.startswith(TIMM) or not Path(name).expanduser().is_dir():
        model, _, file = name.removeprefix(TIMM).partition("@")
        if not file:
            return [argument("timm", model)], "none"
        if not Path(file).expanduser().is_file():
            raise ConfigError("encoders", name, f"has weights in {file}, which does not exist")
        return [argument("timm", model), argument("checkpoint", file)], sha256(Path(file).expanduser())
    return [argument("run", name)], find_checkpoint(Path(name).expanduser()).hash


def _at_root(name: str, arguments: Sequence[str], root: str | None) -> list[str] | None:
    """Return arguments of a data set or task with the folder for {root}; None, with a note, if it is not there.

    Raises:
        ConfigError: the suite needs `root=`.
    """
    if any(ROOT in str(word) for word in arguments) and root is None:
        raise ConfigError("root", None, f"is not set; it is the folder that holds {name}")
    chosen = []
    for word in map(str, arguments):
        key, _, value = word.partition("=")
        if ROOT not in value:
            chosen.append(word)
            continue
        folder = value.replace(ROOT, str(root))
        if not Path(folder).expanduser().exists():
            print(f"{name}: {folder} does not exist; left out", file=sys.stderr, flush=True)
            return None
        chosen.append(argument(key, folder))
    return chosen

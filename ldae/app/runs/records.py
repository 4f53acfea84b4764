"""Read the folders of runs, finished or in training, without changing or locking them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ldae.config.choices import CLASSES
from ldae.core.errors import CheckpointError, Fault
from ldae.core.files import read_sealed_json
from ldae.engine.run_folder import RunFolder, flatten
from linear_probe.results import Result, read_results, title

TRAINING = ("metrics.jsonl", "checkpoints")  # a folder with one of these is one of a training
STARTED = ("config.json", "data.json", "status.json")  # what a training writes before its first step
PRUNED = frozenset({"checkpoints", "tensorboard", "features", "pictures", "figures", "cells"})  # hold no runs
PLAIN = {"knn": "kNN", "holdout": "hold-out", "psnr": "PSNR", "rankme": "RankMe", "lidar": "LiDAR"}
PART = ".part"  # end of a key that names a class
MODEL = "/model"  # end of a monitor's figure of the network in training; its baselines stand beside it


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it.

    Attributes:
        name: its folder, relative to the one that was searched.
        path: its folder.
        config: dotted key -> value; a part is its choice, under the name of its group.
        state: `running`, `done`, `interrupted`, `failed`, `killed` where a run that says `running` has no process, or
            `unknown` where status.json cannot be read.
        message: error message of a failed run.
        step: number of steps made.
        rows: rows of metrics.jsonl.
        results: result lines of its probes on all labels, baselines left out.
        damaged: sentences on files that cannot be read and were left out.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    state: str
    message: str
    step: int
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    results: Sequence[Result] = field(repr=False)
    damaged: Sequence[str] = ()

    @property
    def experiment(self) -> str:
        """Return the name of the experiment; empty if it has none."""
        return str(self.config.get("experiment") or "")

    @property
    def losses(self) -> list[Mapping[str, Any]]:
        """Return the rows of the training steps."""
        return [row for row in self.rows if "monitor" not in row]

    @property
    def epoch(self) -> float | None:
        """Return the number of epochs made; None before the first row."""
        return number(self.losses[-1].get("epoch")) if self.losses else None

    @property
    def total(self) -> int | None:
        """Return the number of steps of the whole training; None where it is not known yet."""
        steps, epochs = number(self.config.get("train.steps")), number(self.config.get("train.epochs"))
        if steps is not None:
            return int(steps)
        if epochs is None or not self.epoch:
            return None
        return max(1, round(epochs * self.losses[-1]["step"] / self.epoch))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Return the last value of each loss and of each monitor's figure of the network."""
        last: dict[str, float] = {}
        for row in self.rows:
            for key, value in row.items():
                if number(value) is not None and is_headline(key, "monitor" in row):
                    last[metric_title(key)] = float(value)
        return last

    @cached_property
    def probes(self) -> dict[str, float]:
        """Return the highest accuracy of each protocol, in percent, by the title of its column.

        Splits other than test, corruptions, and data sets other than the first stand in the title.
        """
        best: dict[str, float] = {}
        for r in self.results:
            name = title(r.protocol) + (f" ({PLAIN.get(r.split, r.split)})" if r.split != "test" else "")
            name += " under corruption" if r.measure.endswith("under corruption") else ""
            name += f" {r.data}" if r.data != self.results[0].data else ""
            best[name] = max(best.get(name, -math.inf), r.accuracy)
        return best


def number(value: Any) -> float | None:
    """Return a finite number as it is; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def is_headline(key: str, is_monitor: bool) -> bool:
    """Return whether a table shows the last value of a key of metrics.jsonl: losses, and figures of monitors."""
    if is_monitor:
        return key not in ("step", "monitor") and (key.endswith(MODEL) or "/" not in key)
    return key == "loss" or key.endswith("/loss")


def metric_title(key: str) -> str:
    """Return the name of a key of metrics.jsonl in tables: `knn_holdout/model` is `kNN hold-out`."""
    name, _, part = key.removesuffix(MODEL).partition("/")
    if re.fullmatch(r"\d+_\d+", part):  # a fraction of the noise schedule
        name, part = f"{name}_at_t_=_{part.replace('_', '/')}_T", ""
    parts = [*name.split("_"), *part.replace("_", " ").replace("/", " ").split()]
    return " ".join(PLAIN.get(text, text) for text in parts)


def read_runs(folders: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read every run at and below some folders.

    Args:
        folders: folders to search; links to folders are not followed.

    Returns:
        The runs by their names, and a sentence for each folder that was left out.
    """
    records, skipped, seen = [], [], set[Path]()
    base = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    for folder in folders:
        for path in run_folders(folder):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            name = path.name if path.resolve() == base else os.path.relpath(path.resolve(), base)
            try:
                records.append(read_run(path, name))
            except Fault as fault:
                skipped.append(f"{path}: left out ({fault})")
            except OSError as error:
                skipped.append(f"{path}: left out ({error.strerror})")
    return records, skipped


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield every folder of a training at and below a folder, sorted."""
    for place, folders, files in os.walk(folder):
        if any(name in files or name in folders for name in TRAINING) or set(STARTED) <= set(files):
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in PRUNED and not name.startswith("."))


def read_run(path: Path, name: str) -> RunRecord:
    """Read the folder of a run.

    Raises:
        CheckpointError: it has no intact config.json, or that is of no training.
    """
    config = {key.removesuffix(PART): choice_of(key, v) for key, v in flatten(read_sealed_json(path / "config.json"))}
    if "train.batch" not in config:
        raise CheckpointError(f"{path / 'config.json'} is not the config of a training")
    folder = RunFolder(path)
    status = folder.status()
    rows = list(_rows(path / "metrics.jsonl"))
    step = max([int(number(status.get("step")) or 0), *(row["step"] for row in rows[-1:])])
    results, damaged = _results(path)
    state, message = (str(status.get(key) or "") for key in ("state", "message"))
    if state == "running" and not folder.is_locked():
        state = "killed"
    return RunRecord(name, path, config, state or "unknown", message, step, rows, results, damaged)


def choice_of(key: str, value: Any) -> Any:
    """Return the choice of a config's group that a part's class is, or its class; any other value as it is."""
    if not key.endswith(PART) or not isinstance(value, str):
        return value
    group = CLASSES.get(key.removesuffix(PART), {})
    return next((choice for choice, path in group.items() if path == value), value.rpartition(".")[2])


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of metrics.jsonl that are whole; the last one of a run in training may not be."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def _results(path: Path) -> tuple[list[Result], list[str]]:
    """Return the probe results of a run, and a sentence for each file that is damaged."""
    results, damaged = [], []
    for file in sorted([*path.glob("results*.jsonl"), *path.glob("probe/results*.jsonl")]):
        try:
            results += read_results(file)
        except (OSError, ValueError, TypeError) as error:
            damaged.append(f"{file}: left out (no result lines: {error})")
    return [r for r in results if r.checkpoint != "none" and r.labels == "all" and math.isfinite(r.accuracy)], damaged

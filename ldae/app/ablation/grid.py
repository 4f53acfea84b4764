"""Read grids of ablations: their trials, the overrides of each, and the paper's accuracies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from ldae.app.compose import CONFIGS
from ldae.config.schema import conform, construct
from ldae.core.errors import ConfigError, UsageError
from ldae.core.types import PossiblyEmpty

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class Grid:
    """Axes of an ablation and the paper's accuracies.

    Attributes:
        name: name of its file.
        title: title in the report.
        source: source of the paper's accuracies.
        overrides: overrides for every trial: of pretraining, or of the probe where they begin with `probe.`.
        axes: {axis: {value: overrides}}; the trials are all combinations, with the last axis fastest.
        paper: accuracies in percent in the order of the trials, nested or flat; null where the paper has none.
        notes: {pattern of trial names: note on the paper's accuracy, appended to its source}.
        with_baselines: the trial whose probe also scores the baselines, or None.
        skip: patterns of the names of combinations that are no trials; `paper` has no entries for them.
    """

    name: str
    title: str
    source: str
    overrides: PossiblyEmpty[str]
    axes: dict
    paper: list
    notes: dict
    with_baselines: str | None = None
    skip: PossiblyEmpty[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One pretraining and one probe of it.

    Attributes:
        grid: name of its grid.
        name: unique name in the grid.
        axes: {axis: value}.
        overrides: overrides of pretraining and of the probe.
        paper: the paper's accuracy in percent, or None.
        paper_source: source of that accuracy.
        with_baselines: whether its probe also scores the baselines.
        is_baseline: whether it is a baseline of the grid instead of one of its combinations.
        position: index in the grid.
        seed: seed of its pretraining, where every trial is repeated over seeds; None for the config's.
    """

    grid: str
    name: str
    axes: Mapping[str, Any]
    overrides: Sequence[str]
    paper: float | None = None
    paper_source: str = ""
    with_baselines: bool = False
    is_baseline: bool = False
    position: int = 0
    seed: int | None = None

    @property
    def label(self) -> str:
        """Return the name of its record, log and messages: of the trial and, if it is repeated, its seed."""
        return self.name if self.seed is None else f"{self.name}.seed{self.seed}"


def read_grid(file: str) -> dict[str, Any]:
    """Read a grid from a YAML file; only `axes` is required.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    path = Path(file).expanduser()
    try:
        spec = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ConfigError("grid", file, f"cannot be read ({message}); give a grid's name or a YAML file") from None
    if not isinstance(spec, dict):
        raise ConfigError("grid", file, f"holds no mapping; copy one of {CONFIGS.name}/grid and change it")
    return {"title": path.stem, "source": "", "overrides": [], "paper": [], "notes": {}, "name": path.stem, **spec}


def grid_of(spec: Mapping[str, Any], overlay: Mapping[str, Any]) -> Grid:
    """Build a grid from its config; a budget may replace keys, and axes by name.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type.
    """
    try:
        axes = conform("axes", spec.get("axes"), dict)
        merged = {**spec, **overlay, "axes": {**axes, **overlay.get("axes", {})}}
        grid: Grid = construct(Grid, merged, {})
        for axis, values in grid.axes.items():
            for value, argv in conform(f"axes.{axis}", values, dict).items():
                conform(f"axes.{axis}.{value}", argv, PossiblyEmpty[str])
        return grid
    except ConfigError as error:
        raise error.with_prefix("grid") from None


def trials_of(grid: Grid) -> list[Trial]:
    """Return the trials of a grid, in order.

    Raises:
        ConfigError: it has no trial, a duplicate or invalid name, or another number of accuracies than trials.
    """
    products = [(_name(pairs), pairs) for pairs in itertools.product(*(v.items() for v in grid.axes.values()))]
    for pattern in grid.skip:
        if not any(fnmatchcase(name, pattern) for name, _ in products):
            raise ConfigError("grid.skip", pattern, "matches no trial")
    products = [(name, pairs) for name, pairs in products if not any(fnmatchcase(name, p) for p in grid.skip)]
    names, combinations = [name for name, _ in products], [pairs for _, pairs in products]
    for name in names:
        if names.count(name) > 1 or not NAME.fullmatch(name):
            message = "must give each trial a unique name of letters, digits, _ . + and -"
            raise ConfigError("grid.axes", name, message)
    papers = list(_flat(grid.paper)) or [None] * len(names)
    if not names or not grid.axes or len(papers) != len(names):
        message = f"must have an accuracy (or null) for each of the {len(names)} trials"
        raise ConfigError("grid.paper" if grid.axes else "grid.axes", papers, message)
    if grid.with_baselines is not None and grid.with_baselines not in names:
        raise ConfigError(
            "grid.with_baselines", grid.with_baselines, f"is no trial of this grid; there are: {', '.join(names)}"
        )
    return [
        Trial(
            grid=grid.name,
            name=name,
            axes=dict(zip(grid.axes, (value for value, _ in pairs), strict=True)),
            overrides=[*grid.overrides, *itertools.chain.from_iterable(argv for _, argv in pairs)],
            paper=conform("grid.paper", paper, float | None),
            paper_source="" if paper is None else _source(grid, name),
            with_baselines=name == grid.with_baselines,
            position=i,
        )
        for i, (name, pairs, paper) in enumerate(zip(names, combinations, papers, strict=True))
    ]


def _name(pairs: Sequence[tuple[Any, Any]]) -> str:
    """Return the name of a combination of (value, overrides) pairs, one for each axis."""
    return "-".join(str(value) for value, _ in pairs)


def _source(grid: Grid, name: str) -> str:
    notes = [note for pattern, note in grid.notes.items() if fnmatchcase(name, pattern)]
    return "; ".join([grid.source, *notes])


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def repeat(trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
    """Return the trials once for each seed, all of the first seed first; unchanged if there are no seeds.

    Only the probes of the first seed score the baselines, which do not depend on it.
    """
    if not seeds:
        return list(trials)
    return [
        replace(
            trial,
            seed=seed,
            overrides=[*trial.overrides, f"seed={seed}"],
            with_baselines=trial.with_baselines and seed == seeds[0],
        )
        for seed in seeds
        for trial in trials
    ]


def select_trials(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """Return the trials that `only` names; all if it is empty.

    Raises:
        UsageError: a name is no trial's.
    """
    names = [trial.name for trial in trials]
    for name in only:
        if name not in names:
            raise UsageError(f"only=[{name}] is no trial of this grid; there are: {', '.join(names)}")
    return [trial for trial in trials if not only or trial.name in only]

"""Grids of ablations: which cells there are, what each changes, and what the paper printed for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """What an ablation varies.

    Attributes:
        name: of its file.
        title: in words.
        source: where the paper's accuracies are from.
        words: overrides for every cell: of pretraining, or of the probe where they begin with `probe.`.
        axes: axis -> value -> the words it stands for; the cells are all combinations, the last axis fastest.
        paper: accuracies in percent in the order of the cells, lists within lists or not; null where none was printed.
        notes: pattern of cells' names -> what to say of the paper's accuracy beside its source.
        floors: the cell whose probe takes the floors along, or null.
    """

    name: str
    title: str
    source: str
    overrides: PossiblyEmpty[str]
    axes: dict
    paper: list
    notes: dict
    with_baselines: str | None = None


@dataclass(frozen=True)
class Trial:
    """One pretraining and one probe of it.

    Attributes:
        grid: which it belongs to.
        name: the only one of that name in the grid.
        axes: axis -> value.
        words: of pretraining and of the probe.
        paper: accuracy that the paper printed, percent, or None.
        paper_source: where.
        floors: whether its probe takes the floors along.
        beside: whether it stands beside the grid, to be compared with, and is no part of it.
        position: its place in the grid.
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


def own_grid(given: str) -> dict[str, Any]:
    """The user's own grid, from a YAML file. The keys `source`, `words`, `paper`, `notes` and `floors` may be left out.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    path = Path(given).expanduser()
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ConfigError("grid", given, f"cannot be read ({message}); give a grid's name or a YAML file") from None
    if not isinstance(found, dict):
        raise ConfigError("grid", given, f"holds no mapping; copy one of {CONFIGS.name}/grid and change it")
    return {"title": path.stem, "source": "", "overrides": [], "paper": [], "notes": {}, "name": path.stem, **found}


def grid_of(spec: Mapping[str, Any], overlay: Mapping[str, Any]) -> Grid:
    """A grid from its keys, some of which a budget replaces (axes by their names).

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
    """The cells of a grid, in order.

    Raises:
        ConfigError: it has none, two of one name, a name that no file may have, or more or fewer accuracies than cells.
    """
    combinations = list(itertools.product(*(values.items() for values in grid.axes.values())))
    names = ["-".join(str(value) for value, _ in pairs) for pairs in combinations]
    for name in names:
        if names.count(name) > 1 or not NAME.fullmatch(name):
            message = "must give each cell a name of its own, of letters, digits, _ . + and -"
            raise ConfigError("grid.axes", name, message)
    papers = list(_flat(grid.paper)) or [None] * len(names)
    if not names or not grid.axes or len(papers) != len(names):
        message = f"must have an accuracy (or null) for each of the {len(names)} cells"
        raise ConfigError("grid.paper" if grid.axes else "grid.axes", papers, message)
    if grid.with_baselines is not None and grid.with_baselines not in names:
        raise ConfigError(
            "grid.with_baselines", grid.with_baselines, f"is no cell of this grid; there are: {', '.join(names)}"
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


def _source(grid: Grid, name: str) -> str:
    notes = [note for pattern, note in grid.notes.items() if fnmatchcase(name, pattern)]
    return "; ".join([grid.source, *notes])


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def chosen(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """The cells that are wanted.

    Raises:
        UsageError: one of the names is no cell's.
    """
    names = [trial.name for trial in trials]
    for name in only:
        if name not in names:
            raise UsageError(f"only=[{name}] is no cell of this grid; there are: {', '.join(names)}")
    return [trial for trial in trials if not only or trial.name in only]

"""From a grid and a budget to pretrainings and probes: their words, their configs, what tells them from others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from _cli import CONFIGS, compose, has_key, resolved
from _grid import Cell
from _precision import settle_precision
from _probe_settings import ProbeSettings
from _session import FREE, Session, own_settings, train_settings
from omegaconf import DictConfig

from ldae.engine.run import flat
from ldae.errors import ConfigError, Fault
from ldae.files import json_hash
from ldae.parts import Count, PossiblyEmpty, conform

PROBE = "probe."  # what the words of a probe begin with
LARGE = 513  # width from which on a network is not made for a check alone
OTHER = "other"  # the grids that a budget does not name


@dataclass(frozen=True)
class Budget:
    """How long and at what size the cells of a grid are trained.

    Attributes:
        name: of its file.
        parallel: cells side by side; they share the cores.
        images: grid -> images seen by each of its cells in pretraining; `other` for the rest.
        words: overrides for every cell, those beside the grid included.
        keys: key -> its value in those cells of the grid that have such a key and do not set it themselves.
        cells: GRID/CELL, with * and ? -> words for the cells of these names.
        grids: grid -> keys of it that are replaced at this size.
        beside: name -> words of a cell that grids are compared with.
    """

    name: str
    parallel: Count
    images: dict
    words: PossiblyEmpty[str]
    keys: dict
    cells: dict
    grids: dict
    beside: dict

    def images_of(self, grid: str) -> int:
        """Images seen by each cell of a grid."""
        found: int = conform(f"budget.images.{grid}", self.images.get(grid, self.images.get(OTHER)), Count)
        return found


@dataclass(frozen=True)
class Planned:
    """A cell with all that running it needs.

    Attributes:
        cell: what it is.
        words: of pretraining, complete but for the machine's and the folder.
        probe: of the probe, likewise.
        config: of pretraining, resolved.
        images: seen in pretraining.
    """

    cell: Cell
    words: Sequence[str]
    probe: Sequence[str]
    config: Mapping[str, Any]
    images: int

    @property
    def run_key(self) -> str:
        """Names the pretraining: alike where the same is computed, in whichever grid."""
        return json_hash(dict(lasting(self.config)))[:12]

    @property
    def key(self) -> str:
        """Names pretraining and probe."""
        return json_hash([self.run_key, list(self.probe)])[:12]

    @property
    def run(self) -> str:
        """The run's folder, among others of its like."""
        return f"{self.cell.name}-{self.run_key}"

    @property
    def tokenizer_key(self) -> str | None:
        """Alike where the same tokenizer is trained by gradient descent; None where none is."""
        spec = self.config.get("tokenizer")
        if not spec or not spec["fit"]["steps"]:
            return None
        return json_hash([spec, self.config["data"], self.config["seed"]])


def lasting(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a pretraining's config, those that change nothing of what is computed left out."""
    return ((k, v) for k, v in flat(config) if not any(k == free or k.startswith(f"{free}.") for free in FREE))


def beside(grid: str, budget: Budget) -> list[Cell]:
    """The cells that a grid is compared with."""
    return [
        Cell(grid, name, {}, conform(f"budget.beside.{name}", words, PossiblyEmpty[str]), beside=True)
        for name, words in budget.beside.items()
    ]


def plan(cell: Cell, budget: Budget, images: int, user: Sequence[str]) -> Planned:
    """A cell's words and config.

    Args:
        images: seen in pretraining.
        user: the user's own words; they win over all others.

    Raises:
        Fault: its config cannot be; the cell is named.
    """
    words = [*cell.words, *_matching(cell, budget), *budget.words]
    with _named(cell):
        found = _composed(words, {} if cell.beside else budget.keys, user)
        config, _ = settle_precision(resolved(found[1]))
        steps = max(1, round(images / conform("train.batch", config["train"]["batch"], Count)))
    config["train"] = {**config["train"], "steps": steps, "epochs": None}
    of_probe = [w.removeprefix(PROBE) for w in latest([*words, *user]) if w.startswith(PROBE)]
    named = [] if any(_key(word) == "experiment" for word in found[0]) else [f"experiment={config['experiment']}"]
    own = [*named, *found[0], f"train.steps={steps}"]
    return Planned(cell, own, of_probe, config, steps * config["train"]["batch"])


def check(planned: Planned) -> None:
    """Makes a cell's parts, networks of more than 512 numbers a token left out: what cannot be fails before any work.

    Raises:
        Fault: a part cannot be made so; the cell is named.
    """
    with _named(planned.cell):
        check_probe(planned.probe)
        session = Session({**planned.config, "runtime": {"threads": 0, "progress": False}})
        train_settings(planned.config)
        small = planned.config["denoiser"].get("width", LARGE) < LARGE
        for group in ("augment", "optim", *(["objective"] if small else [])):
            session.system[group]


def check_probe(words: Sequence[str]) -> None:
    """Check the keys of a cell's probe.

    Raises:
        ConfigError: one cannot work; it begins with `probe.`.
    """
    try:
        own_settings(ProbeSettings, settle_precision(resolved(compose("probe", ["run=RUN", *words])))[0])
    except ConfigError as error:
        raise error.inside("probe") from None


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Faults in the block begin with the cell's name."""
    try:
        yield
    except Fault as fault:
        told = Fault(f"cell {cell.name}: {fault}")
        told.code = fault.code
        raise told from None


def _matching(cell: Cell, budget: Budget) -> Iterator[str]:
    for pattern, words in budget.cells.items():
        if fnmatchcase(f"{cell.grid}/{cell.name}", pattern):
            yield from conform(f"budget.cells.{pattern}", words, PossiblyEmpty[str])


def _composed(words: Sequence[str], keys: Mapping[str, Any], user: Sequence[str]) -> tuple[list[str], DictConfig]:
    """The words of pretraining, those keys of a budget among them that the config has, and the config."""
    own, users = ([w for w in some if not w.startswith(PROBE)] for some in (words, user))
    given = {_key(word) for word in [*own, *users]}
    more = [f"{key}={_text(value)}" for key, value in keys.items() if key not in given]
    groups = [word for word in more if (CONFIGS / _key(word)).is_dir()]
    values = [word for word in more if word not in groups]
    config = compose("pretrain", latest([*own, *groups, *users]), values)
    kept = [word for word in values if has_key(config, _key(word))]
    return latest([*own, *groups, *kept, *users]), config


def latest(words: Sequence[str]) -> list[str]:
    """The words, of those with the same key the last alone."""
    return list({_key(word): word for word in words}.values())


def _key(word: str) -> str:
    return word.partition("=")[0]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

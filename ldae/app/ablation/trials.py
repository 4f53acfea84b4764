"""From a grid and a budget to pretrainings and probes: their words, their configs, what tells them from others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig

from ldae.app.ablation.grid import Trial
from ldae.app.compose import CONFIGS, compose, has_key, resolved
from ldae.app.precision import settle_precision
from ldae.app.probing.settings import ProbeSettings
from ldae.app.session import IGNORED_ON_RESUME, Session, own_settings, train_settings
from ldae.config.schema import conform
from ldae.core.errors import ConfigError, Fault
from ldae.core.files import json_hash
from ldae.core.types import Count, PossiblyEmpty
from ldae.engine.run_folder import flatten

PROBE = "probe."  # what the words of a probe begin with
LARGE = 513  # width from which on a network is not made for a check alone
OTHER = "other"  # the grids that a budget does not name


@dataclass(frozen=True)
class Budget:
    """Configure the length and the size of the trials of a grid.

    Attributes:
        name: name of the budget's file.
        parallel: number of trials that run at the same time and share the cores.
        images: {grid: images seen by each of its trials in pretraining}; `other` stands for the rest.
        overrides: overrides for every trial, baselines included.
        keys: {key: value}, for those trials of the grid whose config has the key and that do not set it themselves.
        trials: {GRID/TRIAL with * and ?: overrides for the trials of these names}.
        grids: {grid: keys of the grid that are replaced at this size}.
        baseline_trials: {name: overrides of a baseline that grids are compared with}.
    """

    name: str
    parallel: Count
    images: dict
    overrides: PossiblyEmpty[str]
    keys: dict
    trials: dict
    grids: dict
    baseline_trials: dict

    def images_of(self, grid: str) -> int:
        """Images seen by each cell of a grid."""
        found: int = conform(f"budget.images.{grid}", self.images.get(grid, self.images.get(OTHER)), Count)
        return found


@dataclass(frozen=True)
class PlannedTrial:
    """A cell with all that running it needs.

    Attributes:
        cell: what it is.
        words: of pretraining, complete but for the machine's and the folder.
        probe: of the probe, likewise.
        config: of pretraining, resolved.
        images: seen in pretraining.
    """

    trial: Trial
    overrides: Sequence[str]
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
        return f"{self.trial.name}-{self.run_key}"

    @property
    def tokenizer_key(self) -> str | None:
        """Alike where the same tokenizer is trained by gradient descent; None where none is."""
        spec = self.config.get("tokenizer")
        if not spec or not spec["fit"]["steps"]:
            return None
        return json_hash([spec, self.config["data"], self.config["seed"]])


def lasting(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a pretraining's config, those that change nothing of what is computed left out."""
    return (
        (k, v)
        for k, v in flatten(config)
        if not any(k == free or k.startswith(f"{free}.") for free in IGNORED_ON_RESUME)
    )


def baseline_trials(grid: str, budget: Budget) -> list[Trial]:
    """The cells that a grid is compared with."""
    return [
        Trial(grid, name, {}, conform(f"budget.baseline_trials.{name}", argv, PossiblyEmpty[str]), is_baseline=True)
        for name, argv in budget.baseline_trials.items()
    ]


def plan(trial: Trial, budget: Budget, images: int, user: Sequence[str]) -> PlannedTrial:
    """A cell's words and config.

    Args:
        images: seen in pretraining.
        user: the user's own words; they win over all others.

    Raises:
        Fault: its config cannot be; the cell is named.
    """
    argv = [*trial.overrides, *_matching(trial, budget), *budget.overrides]
    with _named(trial):
        found = _composed(argv, {} if trial.is_baseline else budget.keys, user)
        config, _ = settle_precision(resolved(found[1]))
        steps = max(1, round(images / conform("train.batch", config["train"]["batch"], Count)))
    config["train"] = {**config["train"], "steps": steps, "epochs": None}
    of_probe = [w.removeprefix(PROBE) for w in latest([*argv, *user]) if w.startswith(PROBE)]
    named = [] if any(_key(word) == "experiment" for word in found[0]) else [f"experiment={config['experiment']}"]
    own = [*named, *found[0], f"train.steps={steps}"]
    return PlannedTrial(trial, own, of_probe, config, steps * config["train"]["batch"])


def check(planned: PlannedTrial) -> None:
    """Makes a cell's parts, networks of more than 512 numbers a token left out: what cannot be fails before any work.

    Raises:
        Fault: a part cannot be made so; the cell is named.
    """
    with _named(planned.trial):
        check_probe(planned.probe)
        session = Session({**planned.config, "runtime": {"threads": 0, "progress": False}})
        train_settings(planned.config)
        small = planned.config["denoiser"].get("width", LARGE) < LARGE
        session.parts.build("augment", "optim", *(["objective"] if small else []))


def check_probe(argv: Sequence[str]) -> None:
    """Check the keys of a cell's probe.

    Raises:
        ConfigError: one cannot work; it begins with `probe.`.
    """
    try:
        own_settings(ProbeSettings, settle_precision(resolved(compose("probe", ["run=RUN", *argv])))[0])
    except ConfigError as error:
        raise error.with_prefix("probe") from None


@contextlib.contextmanager
def _named(trial: Trial) -> Iterator[None]:
    """Faults in the block begin with the cell's name."""
    try:
        yield
    except Fault as fault:
        message = Fault(f"cell {trial.name}: {fault}")
        message.code = fault.code
        raise message from None


def _matching(trial: Trial, budget: Budget) -> Iterator[str]:
    for pattern, argv in budget.trials.items():
        if fnmatchcase(f"{trial.grid}/{trial.name}", pattern):
            yield from conform(f"budget.trials.{pattern}", argv, PossiblyEmpty[str])


def _composed(argv: Sequence[str], keys: Mapping[str, Any], user: Sequence[str]) -> tuple[list[str], DictConfig]:
    """The words of pretraining, those keys of a budget among them that the config has, and the config."""
    own, users = ([w for w in some if not w.startswith(PROBE)] for some in (argv, user))
    given = {_key(word) for word in [*own, *users]}
    more = [f"{key}={_text(value)}" for key, value in keys.items() if key not in given]
    groups = [word for word in more if (CONFIGS / _key(word)).is_dir()]
    values = [word for word in more if word not in groups]
    config = compose("pretrain", latest([*own, *groups, *users]), values)
    kept = [word for word in values if has_key(config, _key(word))]
    return latest([*own, *groups, *kept, *users]), config


def latest(argv: Sequence[str]) -> list[str]:
    """The words, of those with the same key the last alone."""
    return list({_key(word): word for word in argv}.values())


def _key(word: str) -> str:
    return word.partition("=")[0]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

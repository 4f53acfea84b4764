"""Plan the trials of a grid under a budget: overrides, configs and keys of their pretraining and probe."""

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
from ldae.app.resumption import IGNORED_ON_RESUME
from ldae.app.session import Session, root_settings, settings_of, train_settings
from ldae.app.training.monitors import MonitorSettings
from ldae.config.schema import conform
from ldae.core.errors import ConfigError, Fault
from ldae.core.files import json_hash
from ldae.core.types import Count, PossiblyEmpty
from ldae.engine.run_folder import flatten

PROBE = "probe."  # prefix of the overrides of a probe
LARGE = 513  # width from which a check skips building the network
OTHER = "other"  # key of a budget for grids that it does not name


@dataclass(frozen=True)
class Budget:
    """Configure the length and the size of the trials of a grid.

    Attributes:
        name: name of the budget.
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
        """Return the number of images seen by each trial of a grid."""
        images: int = conform(f"budget.images.{grid}", self.images.get(grid, self.images.get(OTHER)), Count)
        return images


@dataclass(frozen=True)
class PlannedTrial:
    """Trial with the overrides and the config that running it needs.

    Attributes:
        trial: the trial of the grid.
        overrides: overrides of pretraining, without those of machine and folder.
        probe: overrides of the probe, likewise.
        config: resolved config of pretraining.
        images: number of images seen in pretraining.
    """

    trial: Trial
    overrides: Sequence[str]
    probe: Sequence[str]
    config: Mapping[str, Any]
    images: int

    @property
    def run_key(self) -> str:
        """Return the key of the pretraining: equal for equal computations, across grids."""
        return json_hash(dict(lasting(self.config)))[:12]

    @property
    def key(self) -> str:
        """Return the key of pretraining and probe."""
        return json_hash([self.run_key, list(self.probe)])[:12]

    @property
    def run(self) -> str:
        """Return the name of the run's folder."""
        return f"{self.trial.name}-{self.run_key}"

    @property
    def tokenizer_key(self) -> str | None:
        """Return the key of the trained tokenizer; None if no tokenizer is trained by gradient descent."""
        spec = self.config.get("tokenizer")
        if not spec or not spec["fit"]["steps"]:
            return None
        return json_hash([spec, self.config["data"], self.config["seed"]])


def lasting(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a pretraining config without the keys that do not affect results."""
    return (
        (k, v)
        for k, v in flatten(config)
        if not any(k == ignored or k.startswith(f"{ignored}.") for ignored in IGNORED_ON_RESUME)
    )


def baseline_trials(grid: str, budget: Budget) -> list[Trial]:
    """Return the baselines of a grid as trials."""
    return [
        Trial(grid, name, {}, conform(f"budget.baseline_trials.{name}", argv, PossiblyEmpty[str]), is_baseline=True)
        for name, argv in budget.baseline_trials.items()
    ]


def plan(trial: Trial, budget: Budget, images: int, user: Sequence[str]) -> PlannedTrial:
    """Compose the overrides and the config of a trial.

    Args:
        images: number of images seen in pretraining.
        user: overrides of the command line, which take precedence.

    Raises:
        Fault: the config is invalid; the message names the trial.
    """
    argv = [*trial.overrides, *_matching(trial, budget), *budget.overrides]
    with _named(trial):
        overrides, composed = _composed(argv, {} if trial.is_baseline else budget.keys, user)
        config, _ = settle_precision(resolved(composed))
        steps = max(1, round(images / conform("train.batch", config["train"]["batch"], Count)))
    config["train"] = {**config["train"], "steps": steps, "epochs": None}
    probe = [w.removeprefix(PROBE) for w in latest([*argv, *user]) if w.startswith(PROBE)]
    named = [] if any(_key(word) == "experiment" for word in overrides) else [f"experiment={config['experiment']}"]
    overrides = [*named, *overrides, f"train.steps={steps}"]
    return PlannedTrial(trial, overrides, probe, config, steps * config["train"]["batch"])


def check(planned: PlannedTrial) -> None:
    """Build the parts of a trial, without networks wider than 512, so that mistakes fail before any work.

    Raises:
        Fault: a part is invalid; the message names the trial.
    """
    with _named(planned.trial):
        check_probe(planned.probe)
        session = Session({**planned.config, "runtime": {"threads": 0, "progress": False}})
        train_settings(planned.config)
        settings_of(planned.config, "monitor", MonitorSettings)
        small = planned.config["denoiser"].get("width", LARGE) < LARGE
        session.parts.build("augment", "optim", *(["objective"] if small else []))


def check_probe(argv: Sequence[str]) -> None:
    """Check the keys of a trial's probe.

    Raises:
        ConfigError: a key is invalid; its name begins with `probe.`.
    """
    try:
        root_settings(ProbeSettings, settle_precision(resolved(compose("probe", ["run=RUN", *argv])))[0])
    except ConfigError as error:
        raise error.with_prefix("probe") from None


@contextlib.contextmanager
def _named(trial: Trial) -> Iterator[None]:
    """Prefix faults of the block with the trial's name."""
    try:
        yield
    except Fault as fault:
        message = Fault(f"trial {trial.label}: {fault}")
        message.code = fault.code
        raise message from None


def _matching(trial: Trial, budget: Budget) -> Iterator[str]:
    for pattern, argv in budget.trials.items():
        if fnmatchcase(f"{trial.grid}/{trial.name}", pattern):
            yield from conform(f"budget.trials.{pattern}", argv, PossiblyEmpty[str])


def _composed(argv: Sequence[str], keys: Mapping[str, Any], user: Sequence[str]) -> tuple[list[str], DictConfig]:
    """Return the overrides of pretraining, with the budget's keys that the config has, and the composed config."""
    base, users = ([w for w in some if not w.startswith(PROBE)] for some in (argv, user))
    assigned = {_key(word) for word in [*base, *users]}
    more = [f"{key}={_text(value)}" for key, value in keys.items() if key not in assigned]
    groups = [word for word in more if (CONFIGS / _key(word)).is_dir()]
    values = [word for word in more if word not in groups]
    config = compose("pretrain", latest([*base, *groups, *users]), values)
    kept = [word for word in values if has_key(config, _key(word))]
    return latest([*base, *groups, *kept, *users]), config


def latest(argv: Sequence[str]) -> list[str]:
    """Keep the last of several overrides of the same key."""
    return list({_key(word): word for word in argv}.values())


def _key(word: str) -> str:
    return word.partition("=")[0]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

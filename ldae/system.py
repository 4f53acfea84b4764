"""From a resolved config to the parts it names. Needs no data: an impossible config fails before any is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ldae.data.datasets import Dataset, Division
from ldae.data.transforms import Augment
from ldae.denoisers.base import Network
from ldae.diffusion.corruptions.base import Corruption
from ldae.diffusion.importance import Timesteps
from ldae.diffusion.samplers import StepRule
from ldae.diffusion.schedules import NoiseSchedule
from ldae.diffusion.spacing import Spacing
from ldae.diffusion.starts import Start
from ldae.diffusion.targets import Target
from ldae.diffusion.variance import Variance
from ldae.diffusion.weights import Weight
from ldae.engine.optim import Optim
from ldae.errors import ConfigError
from ldae.nn.patch_gan import Discriminator
from ldae.nn.perceptual import Perceptual
from ldae.objectives.base import Objective
from ldae.objectives.residues import Metric
from ldae.objectives.spaces import InputSpace, OutputSpace
from ldae.parts import construct, resolve
from ldae.tasks.base import Task
from ldae.tokenizers.base import Tokenizer

# config group -> (package that its parts lie in, what they derive from)
GROUPS: Mapping[str, tuple[str, type]] = {
    "data": ("ldae.data", Dataset),
    "partner": ("ldae.data", Dataset),
    "augment": ("ldae.data", Augment),
    "task": ("ldae.tasks", Task),
    "tokenizer": ("ldae.tokenizers", Tokenizer),
    "corruption": ("ldae.diffusion", Corruption),
    "schedule": ("ldae.diffusion", NoiseSchedule),
    "input": ("ldae.objectives", InputSpace),
    "output": ("ldae.objectives", OutputSpace),
    "target": ("ldae.diffusion", Target),
    "variance": ("ldae.diffusion", Variance),
    "weight": ("ldae.diffusion", Weight),
    "timesteps": ("ldae.diffusion", Timesteps),
    "sampler": ("ldae.diffusion", StepRule),
    "spacing": ("ldae.diffusion", Spacing),
    "levels": ("ldae.diffusion", NoiseSchedule),
    "begin": ("ldae.diffusion", Start),
    "metric": ("ldae.objectives", Metric),
    "denoiser": ("ldae.denoisers", Network),
    "objective": ("ldae.objectives", Objective),
    "perceptual": ("ldae.nn", Perceptual),
    "discriminator": ("ldae.nn", Discriminator),
    "optim": ("ldae.engine", Optim),
}


class System:
    """Builds parts on demand, each once. A constructor asks for another part by naming a parameter after its group.

    Args:
        config: group -> {part: dotted class name, argument: value, ...}; more keys do no harm.

    Example:
        >>> system = System(config)
        >>> objective = system["objective"]     # with its tokenizer, schedule, denoiser, ...
        >>> objective.tokenizer is system["tokenizer"]
        True
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = {**BEFORE, **config}
        self.made: dict[str, Any] = {}
        self.derived: Mapping[str, Callable[[], Any]] = {
            "image_shape": lambda: (self["task"].channels, self["data"].size, self["data"].size),
            "in_shape": lambda: self["input"].shape,
            "out_shape": lambda: self["variance"].widened(self["output"].shape),
            "classes": lambda: self["task"].classes,
            "cond_channels": lambda: self["task"].image_channels,
            "grid": lambda: self["tokenizer"].grid,
            "division": lambda: self.settings("data", Division),
        }

    def __getitem__(self, group: str) -> Any:
        """The part of a group.

        Raises:
            ConfigError: the group is missing, or the part cannot be made so.
        """
        if group not in self.made:
            self.made[group] = self._make(group)
        return self.made[group]

    def settings(self, group: str, kind: type) -> Any:
        """The dataclass `kind`, filled from those keys of a group that it has."""
        names = {field.name for field in fields(kind)}
        chosen = {key: value for key, value in self._spec(group).items() if key in names}
        return self._named(group, lambda: construct(kind, chosen, {}))

    def _spec(self, group: str) -> Mapping[str, Any]:
        spec = self.config.get(group)
        if not isinstance(spec, Mapping):
            raise ConfigError(group, spec, "must be a mapping")
        return spec

    def _make(self, group: str) -> Any:
        if group in OPTIONAL and not (self.config.get(group) or {}).get("factor"):
            return None  # never constructed: a perceptual network of factor 0 needs no file
        package, base = GROUPS[group]
        spec = dict(self._spec(group))
        part = self._named(group, lambda: resolve(spec.pop("part", None), package, base))
        known = GROUPS.keys() | self.derived.keys() - OWN.get(group, set())
        asked = [name for name in _parameters(part) if name in known]
        given = {name: self[name] if name in GROUPS else self.derived[name]() for name in asked}
        elsewhere = set(NOT_ARGUMENTS.get(group, ())) - set(_parameters(part))
        own = {key: value for key, value in spec.items() if key not in elsewhere}
        return self._named(group, lambda: construct(part, own, given))

    @staticmethod
    def _named(group: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            known = error.key.split(".")[0] in GROUPS
            raise (error if known and error.key != group else error.inside(PLACES.get(group, group))) from None


# groups that a config may leave out: null, or of factor 0
OPTIONAL = ("perceptual", "discriminator")

# where a group lies in a config, if not under its own name
PLACES = {group: f"tokenizer.fit.{group}" for group in OPTIONAL}

# keys of a data set that are not its own
READ_ELSEWHERE = ("classes", "patch", "d", "holdout", "test", "split_seed", "cache", "workers", "max_bad", "max_pixels",
                  "channels", "range")  # fmt: skip

# keys of a group that are read elsewhere: by other groups, by what divides and reads images, by what fits tokenizers
NOT_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "data": READ_ELSEWHERE,
    "partner": READ_ELSEWHERE,
    "tokenizer": ("weights", "fit"),
    "perceptual": ("fit",),
}

# arguments that a group's own config gives, though for others they are derived from it
OWN: Mapping[str, set[str]] = {"data": {"classes"}, "partner": {"classes"}, "task": {"classes"}}

# groups that came later, as they are for configs from before
BEFORE: Mapping[str, Any] = {
    "variance": {"part": "ldae.diffusion.variance.Fixed"},
    "timesteps": {"part": "ldae.diffusion.importance.Uniform"},
}


def _parameters(part: type) -> list[str]:
    return list(inspect.signature(part).parameters)

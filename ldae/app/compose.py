"""Compose the config of a command from configs/ and the KEY=VALUE arguments of its command line."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldae.app.overrides import ASSIGNMENT, parse_override, suggestion
from ldae.config.choices import CLASSES, CONFIGS, DETERMINED, choices_of, class_of, groups_of, settings_of
from ldae.core.errors import ConfigError, UsageError, did_you_mean


def _fraction(part: float, whole: float | None, most: float) -> float:
    """Return part / whole, at most `most`; `most` where the whole is not set."""
    return min(part / whole, most) if whole else most


# ${share:100,${train.epochs},0.25}: 100 epochs of warm-up as a fraction of the training, at most a quarter of it
OmegaConf.register_new_resolver("share", _fraction, replace=True)


def _register_classes() -> None:
    """Let Hydra choose the classes that need no file: `target=eps`, `override /target: eps`."""
    store = ConfigStore.instance()
    for group, classes in CLASSES.items():
        for name, path in classes.items():
            store.store(group=group, name=name, node=settings_of(path), provider="ldae")


_register_classes()


def compose(root: str, argv: Sequence[str], optional: Sequence[str] = ()) -> DictConfig:
    """Compose configs/ROOT.yaml and overrides into a config; interpolations are not resolved yet.

    Args:
        root: name of the root config.
        argv: overrides, KEY=VALUE.
        optional: overrides of values, each left out where the config has no such key; `argv` takes precedence.

    Raises:
        UsageError: an argument is no override, names no key or file, or a config cannot be read.
    """
    OmegaConf.clear_resolver("oc.env")  # configs may not read the environment
    argv, folder = _without_config_dir(argv)
    search = [] if folder is None else [f"hydra.searchpath=[{json.dumps(f'file://{folder}')}]"]
    overrides = _parsed(root, _unset_other_length(argv))
    groups = [o for o in overrides if _is_group(o, folder)]
    choices = [*search, *(str(o.input_line) for o in groups)]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = _composed(root, choices) if folder else copy.deepcopy(_of_choices(root, tuple(choices)))
        leftover = _leftover(config, root, groups, search)
        _remove(config, leftover)
        values = [_rename_precision(o, config) for o in overrides if o not in groups]
        added = [o for o in values if o.key_or_group in _unlisted(config, o.key_or_group)]
        for override in values:
            if override not in added:
                _check_key(override, config)
        extra = [o for o in map(parse_override, optional) if has_key(config, o.key_or_group)]
        lines = [f"+{o.input_line}" if o in added else str(o.input_line) for o in (*extra, *values)]
        if lines:
            config = _composed(root, choices + lines)
            _remove(config, leftover)
        return config


def resolved(config: DictConfig) -> dict[str, Any]:
    """Resolve every interpolation of a config, and return plain mappings.

    Raises:
        UsageError: an interpolation leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        advice = "${...} refers to another key; write \\${...} for the text itself"
        raise UsageError(f"{key or 'config'}: {_first_line(error)}; {advice}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def require(argv: Sequence[str], **examples: str) -> None:
    """Check that the arguments name keys that have a default but must be chosen explicitly.

    Args:
        argv: the command line.
        examples: an example value for each required key.

    Raises:
        UsageError: a required key is missing.
    """
    named = {word.partition("=")[0] for word in argv}
    for key, example in examples.items():
        if key not in named:
            raise UsageError(f"{key}= is not given; name one, e.g. {key}={example} (--help shows the usage)")


def _parsed(root: str, argv: Sequence[str]) -> list[Override]:
    """Return the arguments as overrides.

    Raises:
        UsageError: an argument is no override; the message suggests a key.
    """
    for position, word in enumerate(argv):
        if ASSIGNMENT.fullmatch(word) is None:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                keys = [".".join(path) for path in _paths(_composed(root, []))]
            raise UsageError(f"{word!r} is not KEY=VALUE; {suggestion(argv, position, keys)}")
    return [parse_override(word) for word in argv]


def _unset_other_length(argv: Sequence[str]) -> list[str]:
    """Set train.epochs to null where the arguments set train.steps, and the reverse."""
    keys = {word.partition("=")[0]: word.partition("=")[2] for word in argv}
    pairs = (("train.steps", "train.epochs"), ("train.epochs", "train.steps"))
    extra = [f"{b}=null" for a, b in pairs if a in keys and keys[a] != "null" and b not in keys]
    return [*argv, *extra]


def _rename_precision(override: Override, config: DictConfig) -> Override:
    """Rename `precision` to `train.precision`, or the reverse, where the config has only the other key."""
    other = {"precision": "train.precision", "train.precision": "precision"}.get(override.key_or_group)
    if other is None or has_key(config, override.key_or_group) or not has_key(config, other):
        return override
    return parse_override(f"{other}={str(override.input_line).partition('=')[2]}")


def _leftover(
    config: DictConfig, root: str, groups: Sequence[Override], search: Sequence[str]
) -> list[tuple[str, str]]:
    """Return what an experiment sets for parts that the arguments replace by ones without it: (group, key).

    Args:
        config: of the root and the groups.
        root: name of the root config.
        groups: choices of the arguments, GROUP=CHOICE.
        search: Hydra's search path for configs of the user, as an override.
    """
    leftover = []
    for group in {o.key_or_group for o in groups} if "experiment" in config else ():
        part = config[group].get("part") if has_key(config, f"{group}.part") else None
        if not isinstance(part, str) or not part.startswith("ldae."):
            continue
        unknown = [
            str(key) for key in config[group] if key not in {"part", *inspect.signature(class_of(part)).parameters}
        ]
        if unknown:  # to compose the choice alone takes time
            chosen = [str(o.input_line) for o in groups if o.key_or_group == group]
            own = _of_choices(root, (*search, *chosen))[group]
            leftover += [(group, key) for key in unknown if key not in own]
    return leftover


def _remove(config: DictConfig, keys: Sequence[tuple[str, str]]) -> None:
    """Remove keys (group, key) from a config."""
    for group, key in keys:
        OmegaConf.set_struct(config[group], False)
        del config[group][key]
        OmegaConf.set_struct(config[group], None)  # as the whole config


def _is_group(override: Override, folder: Path | None) -> bool:
    group = override.key_or_group
    return group in CLASSES or any((root / group).is_dir() for root in (CONFIGS, folder) if root is not None)


def _without_config_dir(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the arguments without `--config-dir=FOLDER`, and the folder, whose configs join those of the package.

    Raises:
        UsageError: it is given twice, or is no folder.
    """
    options = [word for word in argv if word.startswith("--config-dir")]
    if not options:
        return list(argv), None
    _, _, text = options[0].partition("=")
    folder = Path(text).expanduser().resolve()
    if len(options) > 1 or not text or not folder.is_dir():
        raise UsageError(f"{' '.join(options)}: give one --config-dir=FOLDER with configs, e.g. in FOLDER/experiment")
    return [word for word in argv if word not in options], folder


@functools.lru_cache(maxsize=64)
def _of_choices(root: str, choices: tuple[str, ...]) -> DictConfig:
    """Compose the package's config of some choices, once in a process; callers must not change it."""
    return _composed(root, choices)


def _composed(root: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config, with the name of the experiment under `experiment`."""
    try:
        config = hydra_compose(root, overrides=list(overrides), return_hydra_config=True)
        experiment = config.hydra.runtime.choices.get("experiment")
    except HydraException as error:
        raise UsageError(_explained(error)) from None
    except (OmegaConfBaseException, YAMLError) as error:
        raise UsageError(f"config: {_first_line(error)}") from None
    plain: dict[Any, Any] = {key: config._get_node(key) for key in config if key != "hydra"}
    composed = OmegaConf.create({**plain, **({"experiment": experiment} if experiment else {})})
    OmegaConf.set_struct(composed, True)
    return composed


def _explained(error: HydraException) -> str:
    """Return the first line of an error; of a missing choice, the choices that there are."""
    text = _first_line(error)
    missing = re.search(r"[Cc]ould not find '(\w+)/([\w/.-]+)'", text)
    if missing is None or missing[1] not in groups_of():
        return f"config: {text}"
    group, name = missing.groups()
    names = list(choices_of(group))
    return f"{group}={name} does not exist; there are: {', '.join(names)}{did_you_mean(name, names)}"


def _check_key(override: Override, config: DictConfig) -> None:
    """Check that the config has the key."""
    node: Any = config
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            keys = [".".join(path) for path in _paths(config)]
            key = override.key_or_group
            other = _choices_with(*parts)
            close = [] if other else difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
            if not close and len(parts) == 1:  # the least nested key of this name
                close = sorted((n for n in keys if n.rpartition(".")[2] == key), key=lambda n: n.count("."))[:1]
            hint = f"; did you mean {close[0]}?" if close else other
            if not hint and isinstance(node, DictConfig):
                names = [*map(str, node), *(name.partition(".")[2] for name in _unlisted(config, key))]
                hint = f"; {'.'.join(parts[:depth]) or 'the config'} has: {', '.join(names)}"
            raise ConfigError(key, override.value(), f"is not a key of this config{hint}")
        node = node._get_node(part)
        if isinstance(node, DictConfig) and node._is_none():
            node = None


def _choices_with(group: str, *names: str) -> str:
    """Return a hint at the choices of a group that have a key, if the one in the config has it not."""
    name = ".".join(names)
    classes = CLASSES.get(group, {})
    choices = [choice for choice, path in classes.items() if name in inspect.signature(class_of(path)).parameters]
    if not choices or name in DETERMINED:
        return ""
    return f"; it belongs to {group}={' or '.join(filter(None, [', '.join(choices[:-1]), choices[-1]]))}"


def _unlisted(config: DictConfig, key: str) -> list[str]:
    """Return the keys GROUP.PARAMETER of a key's group that its file leaves to the default of the constructor."""
    group, _, name = key.partition(".")
    if not name or has_key(config, key) or not has_key(config, f"{group}.part"):
        return []
    part = config[group].get("part")
    if not isinstance(part, str) or not part.startswith("ldae."):
        return []
    try:
        defaults = settings_of(part)
    except (ImportError, AttributeError, ValueError):
        return []
    names = [name for name in defaults if name not in DETERMINED]
    return [f"{group}.{name}" for name in names if not has_key(config, f"{group}.{name}")]


def has_key(config: DictConfig, key: str) -> bool:
    """Return whether a config has a dotted key, its value null or not."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none() or part not in set(node):
            return False
        node = node._get_node(part)
    return True


def _paths(config: DictConfig, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for key in config:
        node = config._get_node(key)
        paths.append((*prefix, str(key)))
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            paths += _paths(node, (*prefix, str(key)))
    return paths


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def user_cache(chosen: str | None) -> Path:
    """Return the folder for derived files: `chosen`, else $LDAE_CACHE, else ~/.cache/ldae."""
    if chosen:
        return Path(chosen).expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ldae"
    return Path(os.environ.get("LDAE_CACHE") or default).expanduser()

"""Build objects from plain mappings, with typed checks; class names resolve inside this package only.

A config names a part as `{part: ldae.tokenizers.patch_linear.PatchPCA, d: 16, ...}`. The arguments are checked against
the constructor's signature and annotations before it is called.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from ldae.core.errors import ConfigError, did_you_mean
from ldae.core.types import ALLOW_EMPTY, Range


def resolve(name: Any, package: str, base: type, key: str = "part") -> type:
    """Import the class with a dotted name.

    Args:
        name: dotted name, e.g. `ldae.tokenizers.patch_linear.PatchPCA`.
        package: package that the class must belong to.
        base: base class that it must derive from.
        key: key of the config, for error messages.

    Raises:
        ConfigError: the name is outside the package, does not exist, or is not of a subclass of `base`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+\.[A-Z]\w*", name):
        raise ConfigError(key, name, f"is not the name of a class in {package}")
    module_name, _, class_name = name.rpartition(".")
    if module_name != package and not module_name.startswith(package + "."):
        raise ConfigError(key, name, f"lies outside {package}, where such parts are")
    try:
        resolved = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError:
        raise ConfigError(key, name, f"names a module that {package} does not have") from None
    if not (inspect.isclass(resolved) and issubclass(resolved, base) and resolved.__module__ == module_name):
        raise ConfigError(key, name, f"is not a {base.__name__} of {package}")
    return resolved


def construct(target: Callable[..., Any], arguments: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Call `target` with checked arguments of a config and with given objects.

    Args:
        target: class or function with annotated parameters.
        arguments: {parameter: value of a config}, each checked against its annotation.
        given: {parameter: object}, such as shapes and other parts; those that `target` declares are passed unchecked.

    Returns:
        The result of the call.

    Raises:
        ConfigError: a key is unknown, missing, of the wrong type or out of range.
    """
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    own = [name for name in parameters if name not in given]
    checked = {}
    for key, value in arguments.items():
        if key not in own:
            raise ConfigError(key, value, f"is not a key here (there are: {', '.join(own)}){did_you_mean(key, own)}")
        checked[key] = conform(key, value, hints.get(key, Any))
    for name in own:
        if name not in checked and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(name, None, "is missing")
    return target(**checked, **{name: given[name] for name in parameters if name in given})


def conform(key: str, value: Any, hint: Any) -> Any:
    """Check a value against a type hint and convert it (an int to a float, a list to a tuple).

    A list or tuple needs at least one entry unless `hint` is `PossiblyEmpty`; a tuple of fixed length needs that many.

    Args:
        key: key of the config, for error messages.
        value: value of a config.
        hint: annotation, e.g. `Count | None`.

    Returns:
        The converted value.

    Raises:
        ConfigError: the value has another type, is empty, not finite, or out of range.
    """
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        if ALLOW_EMPTY in choices[1:] and isinstance(value, (list, tuple)) and not value:
            return typing.get_origin(choices[0])()
        return _bounded(key, conform(key, value, choices[0]), choices[1:])
    if origin in (typing.Union, types.UnionType):
        return _either(key, value, choices)
    if origin is typing.Literal:
        if value not in choices:
            names = ", ".join(map(str, choices))
            raise ConfigError(key, value, f"is none of: {names}{did_you_mean(str(value), map(str, choices))}")
        return value
    if origin in (list, tuple):
        return origin(_entries(key, value, origin, choices))
    return _plain(key, value, hint)


def _entries(key: str, value: Any, origin: type, choices: tuple[Any, ...]) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(key, value, "must be a list")
    if not value:
        raise ConfigError(key, value, "must have at least one entry")
    if origin is tuple and Ellipsis not in choices and len(value) != len(choices):
        raise ConfigError(key, value, f"must have {len(choices)} entries")
    return [conform(key, entry, choices[0]) for entry in value]


def _bounded(key: str, value: Any, bounds: tuple[Any, ...]) -> Any:
    for bound in bounds:
        if isinstance(bound, Range) and value not in bound:
            raise ConfigError(key, value, f"must be {bound}")
    return value


def _either(key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if value is None and type(None) in choices:
        return None
    failure = None
    for choice in (c for c in choices if c is not type(None)):
        try:
            return conform(key, value, choice)
        except ConfigError as error:
            failure = error
    assert failure is not None
    raise failure


def _plain(key: str, value: Any, hint: Any) -> Any:
    expectations = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool))
    if not fits:
        raise ConfigError(key, value, f"must be {expectations.get(hint, hint)}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(key, value, "must be a finite number")
    return value

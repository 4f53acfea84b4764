"""Read KEY=VALUE arguments of the command line, and write them so that a shell and this reader give them back."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from ldae.core.errors import UsageError

# keys whose value is a path or a name: a number, true or a comma in it is text too
TEXTS = ("out", "run", "data.root", "data.cache", "blend_dataset.root", "blend_dataset.cache", "outliers.root",
         "outliers.cache", "tokenizer.weights", "checkpoint", "features", "onnx", "function", "pictures",
         "guide", "keep", "low", "save", "mae", "cold", "site", "jpegs", "mask",
         "tokenizer.fit.perceptual.vgg", "encoder", "real", "fake", "restored", "answers", "where", "sort")  # fmt: skip
ASSIGNMENT = re.compile(r"(~?\+{0,2}[A-Za-z_][\w.@/]*)=(.*)", re.S)


def parse_override(word: str) -> Override:
    """Parse one KEY=VALUE.

    Hydra's grammar comes first. A value that it has no reading for, and that does not begin as a list, a mapping or a
    quoted text, is taken as text as it stands; so is every value of the keys in `TEXTS` that would be a number, a
    boolean or several values.

    Raises:
        UsageError: the word assigns nothing, or its list, mapping or quotes cannot be read.
    """
    assignment = ASSIGNMENT.fullmatch(word)
    if assignment is None:
        raise UsageError(f"{word!r} is not KEY=VALUE")
    key, text = assignment.groups()
    try:
        override = _parsed(word)
    except HydraException:
        if text.lstrip()[:1] in ("[", "{", "'", '"'):
            raise UsageError(f"{word!r} cannot be read; {_how_to_quote(key, text)}") from None
        return _text_override(key, text)
    if override.type != OverrideType.CHANGE:
        raise UsageError(f"{word!r}: only KEY=VALUE is understood, with keys that exist and one value each")
    if key in TEXTS and (override.is_sweep_override() or isinstance(override.value(), (bool, int, float))):
        return _text_override(key, text)
    if override.is_sweep_override():
        several = shlex.quote(f"{key}=[{text}]")
        raise UsageError(f"{word!r}: only KEY=VALUE is understood, with one value each; a list is {several}")
    return override


def argument(key: str, value: object) -> str:
    """Return KEY=VALUE such that `parse_override` gives `value` back as a text."""
    text = str(value)
    word = f"{key}={text}"
    try:
        if parse_override(word).value() == text:
            return word
    except UsageError:
        pass
    return f"{key}={_quoted(text)}"


def arguments(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield KEY=VALUE as the command line has it for each key of nested mappings.

    Args:
        overrides: {key: value}; a nested key is a mapping or a dotted key.
        prefix: of every key.
    """
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from arguments(value, f"{prefix}{key}.")
        else:
            text = isinstance(value, (str, Path))
            yield argument(prefix + key, value) if text else f"{prefix}{key}={json.dumps(value)}"


def command(tool: str, **values: object) -> str:
    """Return the command `ldae COMMAND KEY=VALUE ...`, quoted for a POSIX shell.

    Example:
        >>> command("probe", run="my runs/a")
        "ldae probe 'run=my runs/a'"
    """
    return shlex.join(["ldae", tool, *(argument(key, value) for key, value in values.items())])


def suggestion(argv: Sequence[str], position: int, keys: Sequence[str]) -> str:
    """Return the assignment that an argument such as `--steps 5` or `--steps=5` probably means.

    Args:
        argv: the command line.
        position: index of the argument that assigns nothing.
        keys: dotted keys of the config.
    """
    name, equals, value = argv[position].lstrip("-").partition("=")
    following = argv[position + 1] if position + 1 < len(argv) else ""
    if not equals:
        value = following if following and "=" not in following and following[0] != "-" else "VALUE"
    name = name.replace("-", "_")
    cutoff = 0.6 if argv[position].startswith("-") else 0.99
    ends = {key.rsplit(".", 1)[-1] for key in keys}
    close = (
        name if name in keys else next(iter(difflib.get_close_matches(name, sorted(ends), n=1, cutoff=cutoff)), None)
    )
    if close is None:
        return "write KEY=VALUE, e.g. train.steps=5; --help names the keys"
    key = min((k for k in keys if k == close or k.endswith(f".{close}")), key=lambda k: (k.count("."), k))
    return f"write KEY=VALUE, e.g. {shlex.quote(f'{key}={value}')}"


def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_overrides([word])[0]


def _text_override(key: str, text: str) -> Override:
    if key in TEXTS and text.startswith("~"):
        text = os.path.expanduser(text)
    try:
        return _parsed(f"{key}={_quoted(text)}")
    except HydraException:
        raise UsageError(f"{key}={text!r} cannot be read; {_how_to_quote(key, text)}") from None


def _quoted(text: str) -> str:
    """Return a text in the single quotes of Hydra's grammar: backslashes count where a quote follows them."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def _how_to_quote(key: str, text: str) -> str:
    if text.lstrip()[:1] in ("[", "{"):
        whole = shlex.quote(f'{key}=["a=b","c, d"]')
        return f"quote each text that has one of =,:()[]{{}}#~ in it, and the whole for the shell, e.g. {whole}"
    return f"quote a text twice, for the shell and for the reader: {shlex.quote(f'{key}={_quoted(text)}')}"

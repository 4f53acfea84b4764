"""Exceptions that end a command with one sentence and an exit code (sysexits.h)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class Fault(Exception):
    """A failure that one sentence explains.

    Attributes:
        code: exit status of the process.
    """

    code = 70


def as_written(value: Any) -> str:
    """Return a value as a command line or YAML has it: null, true and false, else as Python prints it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


class ConfigError(Fault):
    """A config key has an invalid value; the message names the key, the value and the values that are valid.

    Args:
        key: dotted name of the key, relative to the part that raises the error.
        value: its value.
        expectation: clause that completes the sentence `key=value ...`.
    """

    code = 2

    def __init__(self, key: str, value: Any, expectation: str):
        self.key, self.value, self.expectation = key, value, expectation
        super().__init__(f"{key}={as_written(value)} {expectation}")

    def with_prefix(self, group: str) -> ConfigError:
        """Return this error with `group.` before its key, so that the key counts from the root of the config."""
        return ConfigError(f"{group}.{self.key}", self.value, self.expectation)


class UsageError(Fault):
    """The command line is malformed."""

    code = 2


class DataError(Fault):
    """Images or labels are missing, damaged or in conflict with the config."""

    code = 65


class CheckpointError(Fault):
    """A checkpoint or a tokenizer file is missing, damaged or in a foreign format."""

    code = 65


class NotFittedError(Fault):
    """A tokenizer is used before it is fitted, trained or loaded."""


class NonFiniteError(Fault):
    """A loss or a gradient is NaN or infinite; the step is discarded."""

    code = 70


class OutputError(Fault):
    """The output folder is not writable, or another process has locked it."""

    code = 73


class LockedError(OutputError):
    """Another process has locked the output folder."""


class StorageError(Fault):
    """A read or write failed: disk full, file-size limit, I/O error."""

    code = 74


class PeerError(Fault):
    """Another process of the run ended or does not respond; checkpoints are intact."""

    code = 74


class OutOfMemory(Fault):
    """The memory of the machine or of the GPU does not suffice for what the config asks for."""

    code = 2


class Interrupted(Fault):
    """A signal stopped the run after it saved a checkpoint; the same command resumes from there."""

    code = 75


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'X'?` for the choice with the spelling closest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def abbreviate(names: Sequence[str], count: int = 5) -> str:
    """Return the first `count` names as one text, and the number of the others."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

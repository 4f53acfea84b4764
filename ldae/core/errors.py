"""The faults a run can end with; each carries the exit code that the command line answers with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class Fault(Exception):
    """A failure that is explained in one sentence. `code` becomes the exit status."""

    code = 70


class ConfigError(Fault):
    """A key holds something that cannot work. Names the key, the value and what would do.

    Args:
        key: dotted name of the key, relative to the part that raises it.
        value: what was found there.
        expectation: a clause that finishes the sentence `key=value ...`.
    """

    code = 2

    def __init__(self, key: str, value: Any, expectation: str):
        self.key, self.value, self.expectation = key, value, expectation
        super().__init__(f"{key}={value!r} {expectation}")

    def inside(self, group: str) -> ConfigError:
        """The same error, its key read from the root of the config."""
        return ConfigError(f"{group}.{self.key}", self.value, self.expectation)


class UsageError(Fault):
    """The command line cannot be understood."""

    code = 2


class DataError(Fault):
    """Images or labels are missing, damaged or not what the config says."""

    code = 65


class CheckpointError(Fault):
    """A checkpoint or a tokenizer file is missing, damaged or not ours."""

    code = 65


class NotFittedError(Fault):
    """A tokenizer is used before it was fitted, trained or loaded."""


class NonFiniteError(Fault):
    """A loss or a gradient is NaN or infinite; nothing of that step was kept."""

    code = 70


class OutputError(Fault):
    """The output folder cannot be written, or another process holds it."""

    code = 73


class HeldError(OutputError):
    """Another process holds the output folder."""


class StorageError(Fault):
    """Reading or writing failed: disk full, file-size limit, I/O error."""

    code = 74


class PeerError(Fault):
    """Another process of the run is gone or stands still; checkpoints are untouched."""

    code = 74


class Interrupted(Fault):
    """A signal asked the run to stop; it was saved. The same command goes on from there."""

    code = 75


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the choice that is spelt most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""

"""Return the provenance of a result: version, commit, command."""

from __future__ import annotations

import functools
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ldae.core.version import __version__

_COMMAND = ["ldae"]  # of this process, as a user would type it


def version() -> str:
    """Return the version of the package, e.g. `0.2.0`."""
    return __version__


def set_command(name: str, argv: Sequence[str]) -> None:
    """Set the command that result lines of this process quote."""
    _COMMAND[:] = ["ldae", name, *argv]


def command() -> str:
    """Return the command of this process, quoted for a POSIX shell."""
    return shlex.join(_COMMAND)


@functools.cache
def commit() -> str:
    """Return the commit of this checkout, with `+` if files differ from it; `unknown` outside one.

    That of the first call: the process goes on with the code that it has read.
    """
    argv = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():  # an installed package, perhaps inside another repository
        return "unknown"
    try:
        return subprocess.run(argv, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

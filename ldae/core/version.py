"""Name the version of the package, and check the version that wrote a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldae.core.errors import CheckpointError

__version__ = "0.2.0"


def check_version(config: Mapping[str, Any], source: str) -> None:
    """Check that a run was written by a version whose runs this one reads.

    Args:
        config: config of the run; since 0.2 it has a key `version`.
        source: key and value of the run in the command, e.g. `run=FOLDER`.

    Raises:
        CheckpointError: it was written by ldae 0.1.
    """
    if "version" not in config:
        raise CheckpointError(
            f"{source} was written by ldae 0.1, whose runs ldae {__version__} does not read; "
            f"use ldae 0.1.0 for it, or pretrain again"
        )

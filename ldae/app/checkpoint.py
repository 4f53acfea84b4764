"""Lists or verifies the checkpoints of a run.

    ldae checkpoint list RUN
    ldae checkpoint verify RUN

Exit code 65 if none is whole (`verify`: if one is damaged).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldae.core.errors import CheckpointError, UsageError
from ldae.engine.checkpoint import list_checkpoints, verify


def main(argv: Sequence[str]) -> None:
    """list RUN | verify RUN."""
    if len(argv) != 2 or argv[0] not in ("list", "verify"):
        raise UsageError("usage: ldae checkpoint list|verify RUN")
    root = Path(argv[1]) / "checkpoints"
    found = list_checkpoints(root)
    if not found:
        raise CheckpointError(f"{root} has no checkpoint")
    damaged = [report(path) for path in found].count(False)
    if damaged == len(found) or (damaged and argv[0] == "verify"):
        raise CheckpointError(f"{damaged} of {len(found)} checkpoints are damaged")


def report(path: Path) -> bool:
    """Prints a line on a checkpoint; whether it is whole."""
    try:
        checkpoint = verify(path)
    except CheckpointError as error:
        print(f"{path.name}  DAMAGED  {error}")
        return False
    size = sum(file["size"] for file in checkpoint.manifest["files"].values())
    print(f"{path.name}  whole  epoch {checkpoint.manifest['epoch']}  {size / 2**20:.1f} MiB  {checkpoint.hash[:12]}")
    return True

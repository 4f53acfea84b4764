"""List or verify the checkpoints of a run.

    ldae checkpoint list RUN
    ldae checkpoint verify RUN

The exit code is 65 if no checkpoint is intact (`verify`: if one is damaged).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldae.core.errors import CheckpointError, UsageError
from ldae.engine.checkpoint import list_checkpoints, verify


def main(argv: Sequence[str]) -> None:
    """Run `ldae checkpoint`."""
    if len(argv) != 2 or argv[0] not in ("list", "verify"):
        raise UsageError("usage: ldae checkpoint list|verify RUN")
    root = Path(argv[1]) / "checkpoints"
    checkpoints = list_checkpoints(root)
    if not checkpoints:
        raise CheckpointError(f"{root} has no checkpoint")
    damaged = [report(path) for path in checkpoints].count(False)
    if damaged == len(checkpoints) or (damaged and argv[0] == "verify"):
        raise CheckpointError(f"{damaged} of {len(checkpoints)} checkpoints are damaged")


def report(path: Path) -> bool:
    """Print the state of a checkpoint and return whether it is intact."""
    try:
        checkpoint = verify(path)
    except CheckpointError as error:
        print(f"{path.name}  DAMAGED  {error}")
        return False
    size = sum(file["size"] for file in checkpoint.manifest["files"].values())
    print(f"{path.name}  whole  epoch {checkpoint.manifest['epoch']}  {size / 2**20:.1f} MiB  {checkpoint.hash[:12]}")
    return True

"""Lists or verifies the checkpoints of a run.

    python tools/checkpoint.py list RUN
    python tools/checkpoint.py verify RUN

Exit code 65 if none is whole (`verify`: if one is damaged).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _cli import run_tool

from ldae.engine.checkpoint import listed, verify
from ldae.errors import CheckpointError, UsageError


def main(words: Sequence[str]) -> None:
    """list RUN | verify RUN."""
    if len(words) != 2 or words[0] not in ("list", "verify"):
        raise UsageError("usage: python tools/checkpoint.py list|verify RUN")
    root = Path(words[1]) / "checkpoints"
    found = listed(root)
    if not found:
        raise CheckpointError(f"{root} has no checkpoint")
    damaged = [report(path) for path in found].count(False)
    if damaged == len(found) or (damaged and words[0] == "verify"):
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


if __name__ == "__main__":
    run_tool(main)

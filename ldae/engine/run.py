"""The folder of a run: its lock, its config, its status."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldae.errors import OutputError, UsageError
from ldae.files import make_folder, write_json


class RunFolder:
    """RUN/ with status.json, metrics.jsonl, tensorboard/, checkpoints/ and what a tool adds.

    Args:
        path: the folder; made when it is acquired.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: FileLock | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def acquire(self) -> None:
        """Makes the folder and holds it until this process ends, however it ends.

        Raises:
            OutputError: it cannot be made or written, or another process holds it.
        """
        try:
            make_folder(self.path)
            self._lock = FileLock(self.path / ".lock", timeout=1)
            self._lock.acquire()
            write_json(self.path / ".writable", {})
            (self.path / ".writable").unlink()
        except Timeout:
            raise OutputError(f"out={self.path} is held by another process; wait for it or give another out=") from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise OutputError(f"out={self.path} cannot be written ({error.strerror}); give another out=") from None

    def release(self) -> None:
        """Lets another process have the folder."""
        if self._lock is not None:
            self._lock.release()

    def status(self) -> dict[str, Any]:
        """What status.json says, or an empty mapping."""
        try:
            found = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def set_status(self, state: str, step: int, code: int = 0, message: str = "") -> None:
        """Writes {state, step, code, message}: `running`, `done`, `interrupted` or `failed`."""
        value = {"state": state, "step": step, "code": code, "message": message}
        write_json(self.path / "status.json", value)


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], free: Collection[str]
) -> list[tuple[str, Any, Any]]:
    """(key, saved value, current value) wherever two configs differ, but for keys at or below one in `free`."""
    a, b = dict(flat(saved)), dict(flat(current))
    free_key = lambda key: any(key == f or key.startswith(f + ".") for f in free)  # noqa: E731
    return [
        (key, a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not free_key(key)
    ]


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], free: Collection[str]) -> None:
    """Refuses to go on with another config than the run began with.

    Raises:
        UsageError: naming every difference that `free` does not allow.
    """
    if found := differences(saved, current, free):
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in found)
        names = ",".join(key for key, _, _ in found)
        raise UsageError(f"this run was begun otherwise: {listed}. Give another out=, or allow=[{names}] to go on so")

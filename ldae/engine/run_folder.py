"""The folder of a run: its lock, its config, its status."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldae.core.errors import Fault, Interrupted, LockedError, OutputError, UsageError
from ldae.core.files import DISK_FULL, make_folder, remove_temporary, wrap_os_error, write_json

BOOKKEEPING = frozenset({".lock", "status.json", "config.json", "data.json"})  # what a run leaves before its first step


class RunFolder:
    """RUN/ with status.json, metrics.jsonl, tensorboard/, checkpoints/ and what a tool adds.

    Args:
        path: the folder; made when it is acquired.
        derived: names of files in it that are made again from the config and the data alone.
    """

    def __init__(self, path: Path, derived: Collection[str] = ()):
        self.path = path
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._bookkeeping = BOOKKEEPING | set(derived)

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
        """Make the folder and hold it until this process ends, however it ends; remove what killed ones left in it.

        Raises:
            LockedError: another process holds it.
            OutputError: it cannot be made or written.
            StorageError: the disk is full.
        """
        try:
            self._made = make_folder(self.path)
            self._lock = FileLock(self.path / ".lock", timeout=1)
            self._lock.acquire()
            remove_temporary(self.path, age=0)
            remove_temporary(self.checkpoints, age=0)
            probe = self.path / ".tmp-writable"
            probe.write_text("{}")
            probe.unlink()
        except Timeout:
            raise LockedError(f"out={self.path} is held by another process; wait for it or give another out=") from None
        except OSError as error:
            if error.errno in DISK_FULL:
                raise wrap_os_error(error) from None
            raise OutputError(f"out={self.path} cannot be written ({error.strerror}); give another out=") from None

    def release(self) -> None:
        """Lets another process have the folder."""
        if self._lock is not None:
            self._lock.release()

    def discard_if_new(self, keep: Collection[str] = ()) -> None:
        """Remove the folder, and those made for it, if this process made it and nothing but bookkeeping is in it.

        Args:
            keep: names of files that stay.
        """
        if self.path not in self._made:
            return
        entries = list(self.path.rglob("*"))
        if any(not p.is_dir() and (p.parent != self.path or p.name not in self._bookkeeping) for p in entries):
            return
        for path in sorted(entries, reverse=True):  # what a folder holds comes before it
            if path.is_dir():
                path.rmdir()
            elif path.name not in keep:
                path.unlink(missing_ok=True)
        for folder in self._made:
            if any(folder.iterdir()):
                return
            folder.rmdir()

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

    def set_failed(self, fault: Fault) -> None:
        """Write the status that an error leaves, if the folder can still be written."""
        state = "interrupted" if fault.code == Interrupted.code else "failed"
        with contextlib.suppress(OSError, Fault):
            self.set_status(state, self.status().get("step", 0), fault.code, str(fault))


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

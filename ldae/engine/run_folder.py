"""Folder of a run: lock, status, and comparison of configs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldae.core.errors import Fault, Interrupted, LockedError, OutputError, UsageError
from ldae.core.files import DISK_FULL, make_folder, remove_temporary, wrap_os_error, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# files that a run writes before its first step
BOOKKEEPING = frozenset({".lock", "status.json", "config.json", "data.json"})


class RunFolder:
    """Folder of a run with status.json, metrics.jsonl, tensorboard/, checkpoints/ and files of the command.

    Args:
        path: path of the folder; `acquire` makes it.
        derived: names of files that can be computed again from the config and the data.
    """

    def __init__(self, path: Path, derived: Collection[str] = ()):
        self.path = path
        self._lock: FileLock | None = None
        self._made: list[Path] = []
        self._bookkeeping = BOOKKEEPING | set(derived)

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of the metrics."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Return the folder of TensorBoard's files."""
        return self.path / "tensorboard"

    def acquire(self) -> None:
        """Make the folder, lock it until this process ends, and remove temporary files of killed processes.

        Raises:
            LockedError: another process has locked the folder.
            OutputError: the folder cannot be made or written.
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

    def is_locked(self) -> bool:
        """Return whether a process holds the folder; true where the system cannot tell."""
        if fcntl is None:
            return True
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def discard_if_new(self, keep: Collection[str] = ()) -> None:
        """Remove the folder and its new parents if this process made it and it has only bookkeeping files.

        Args:
            keep: names of files to keep.
        """
        if self.path not in self._made:
            return
        entries = list(self.path.rglob("*"))
        if any(not p.is_dir() and (p.parent != self.path or p.name not in self._bookkeeping) for p in entries):
            return
        for path in sorted(entries, reverse=True):  # the content of a folder before the folder
            if path.is_dir():
                path.rmdir()
            elif path.name not in keep:
                path.unlink(missing_ok=True)
        for folder in self._made:
            if any(folder.iterdir()):
                return
            folder.rmdir()

    def status(self) -> dict[str, Any]:
        """Return the content of status.json, or an empty mapping."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def set_status(self, state: str, step: int, code: int = 0, message: str = "") -> None:
        """Write status.json.

        Args:
            state: `running`, `done`, `interrupted` or `failed`.
            step: number of steps made.
            code: exit code.
            message: error message.
        """
        value = {"state": state, "step": step, "code": code, "message": message}
        write_json(self.path / "status.json", value)

    def set_failed(self, fault: Fault) -> None:
        """Write the status of a run that ended with a fault, if the folder is still writable.

        A refused command leaves the status of the run that it would have continued as it was.
        """
        if fault.code == UsageError.code and self.path not in self._made and self.status():
            return
        state = "interrupted" if fault.code == Interrupted.code else "failed"
        with contextlib.suppress(OSError, Fault):
            self.set_status(state, self.status().get("step", 0), fault.code, str(fault))


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of nested mappings."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], ignored: Collection[str]
) -> list[tuple[str, Any, Any]]:
    """Return (key, saved value, current value) of all differences of two configs, except at or below ignored keys."""
    a, b = dict(flatten(saved)), dict(flatten(current))
    is_ignored = lambda key: any(key == name or key.startswith(name + ".") for name in ignored)  # noqa: E731
    return [
        (key, a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not is_ignored(key)
    ]


def check_same_config(saved: Mapping[str, Any], current: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Refuse to resume a run with a different config.

    Raises:
        UsageError: the configs differ; the message lists all differences except at or below ignored keys.
    """
    if changes := differences(saved, current, ignored):
        text = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes)
        names = ",".join(key for key, _, _ in changes)
        raise UsageError(f"this run was begun otherwise: {text}. Give another out=, or allow=[{names}] to go on so")

"""Files that are either whole or absent: atomic writes, hashes, safetensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldae.errors import CheckpointError, StorageError


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a failed write below `path` into a StorageError that says what to do."""
    try:
        yield
    except SafetensorError as error:
        raise StorageError(f"writing {path} failed: {error}; free space there and run the same command again") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise StorageError(
                f"writing {path} failed: {error.strerror}; free space there and run the same command again"
            ) from None
        raise


def fsync(path: Path) -> None:
    """Flushes a file or a folder to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes a folder, and those it is in where they are not there, on the disk itself."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step: a reader sees the old file or the new one, never a part."""
    with replaced(path) as f:
        f.write(text.encode())


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; when the block ends well it replaces `path` in one step, on the disk."""
    with storage_errors(path), _beside(path) as temporary, open(temporary, "wb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """The name of a file to write and to sync; when the block ends well it replaces `path`."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Like write_text, for a JSON value."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: it is absent, is not JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


@contextlib.contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; when the block ends well, it appears as `target` all at once, on the disk.

    Whatever was at `target` gives way. A block that raises leaves nothing behind.
    """
    make_folder(target.parent)
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    with storage_errors(target):
        temporary.mkdir()
        try:
            yield temporary
            for path in sorted(temporary.iterdir()):
                fsync(path)
            fsync(temporary)
            if target.exists():
                shutil.rmtree(target)
            os.rename(temporary, target)
            fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Replaces `path` by named tensors as safetensors, in one step, on the disk."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with storage_errors(path), _beside(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata or {}))
        fsync(temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is absent or is no safetensors file. (A pickle is never opened.)
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None

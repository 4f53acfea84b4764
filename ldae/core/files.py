"""Files that are either whole or absent, and that are known to be whole: atomic writes, hashes, safetensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldae.core.errors import CheckpointError, Fault, OutputError, StorageError

SEAL, BLANK = "sha256", "0" * 64  # key of safetensors metadata; its value while the file's own hash is computed
OWN = "own"  # key of a sealed JSON object: the hash of all other keys
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
STALE = 24 * 3600.0  # seconds without a write after which a temporary folder is taken for left behind


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


def own_hash(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of all that a JSON object says but its key `own`."""
    return json_hash({key: item for key, item in value.items() if key != OWN})


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into one sentence.

    Raises:
        OutputError: permissions or a read-only file system forbid it.
        StorageError: any other error of the operating system.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise _failed_write(path, int(number[1]) if number else 0, str(error)) from None
    except OSError as error:
        here = str(path.parent)
        if error.filename is not None and not str(error.filename).startswith(here):
            raise storage_fault(error) from None  # of a file that was read meanwhile
        raise _failed_write(path, error.errno or 0, error.strerror or str(error)) from None


def _failed_write(path: Path, number: int, reason: str) -> Fault:
    if number in UNWRITABLE:
        return OutputError(f"writing {path} failed: {reason}; make it writable and run the same command again")
    advice = "free space there and " if number in FULL else ""
    return StorageError(f"writing {path} failed: {reason}; {advice}run the same command again")


def fault_of(error: Exception) -> Fault:
    """Return what a run that ends with an error is told to have ended with; an unexpected one is internal."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, OSError):
        return storage_fault(error)
    return Fault(f"internal: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def storage_fault(error: OSError) -> Fault:
    """Return one sentence for an error of the operating system: the file, the reason, the advice.

    Args:
        error: with or without `errno`; one that crossed from a worker process has a whole traceback as its text.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    reason = f"{name}: {error.strerror}" if name is not None and error.strerror else lines[-1]
    advice = "free space and " if error.errno in FULL else ""
    kind = OutputError if error.errno == errno.EROFS else StorageError
    return kind(f"{reason}; {advice}run the same command again")


def failed_read(path: Path, error: OSError) -> Fault:
    """Return the fault for a file that cannot be read: CheckpointError where it or the disk below it is damaged or
    missing, else StorageError."""
    if error.errno in (*ABSENT, errno.EIO):
        return CheckpointError(f"{path} cannot be read ({error.strerror})")
    return StorageError(f"reading {path} failed: {error.strerror or error}")


def fsync(path: Path) -> None:
    """Flushes a file or a folder to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those it is in where they are not there, on the disk itself.

    Returns:
        The folders that were made, the innermost first.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)
    return missing


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
        StorageError: the operating system cannot read it.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise failed_read(path, error) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of its content under the key `own`."""
    whole = json.loads(json.dumps(dict(value)))  # as it will be read
    write_json(path, {**whole, OWN: own_hash(whole)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that write_sealed_json wrote, without the key `own`.

    Raises:
        CheckpointError: it is absent, no JSON object, or not the content that was written. An object without `own` is
            taken as it is.
        StorageError: the operating system cannot read it.
    """
    value = read_json(path)
    content = own_hash(value)
    if value.pop(OWN, content) != content:
        raise CheckpointError(
            f"{path} is damaged (its content does not have the SHA-256 that it names); restore it, or remove it and "
            "run the same command again"
        )
    return value


@contextlib.contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; when the block ends well, it appears as `target` all at once, on the disk.

    Whatever was at `target` gives way. A block that raises leaves nothing behind.
    """
    make_folder(target.parent)
    temporary = _temporary(target)
    with storage_errors(target):
        temporary.mkdir()
        try:
            yield temporary
            for path in sorted(temporary.iterdir()):
                fsync(path)
            fsync(temporary)
            put_in_place(temporary, target)
            fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"


def put_in_place(new: Path, target: Path) -> None:
    """Rename a folder to `target`; what was there is renamed before it is removed, so that no part of it remains."""
    if not target.exists():
        os.rename(new, target)
        return
    old = _temporary(target)
    os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a reader sees all of it or nothing: it is renamed to `.tmp-...` first."""
    with contextlib.suppress(FileNotFoundError):
        old = _temporary(path)
        os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)


def remove_temporary(folder: Path, age: float = STALE) -> None:
    """Remove what killed processes left in a folder: `.tmp-...`.

    Args:
        age: seconds without a write after which it is left behind; 0 where this process alone writes there.
    """
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            written = max(p.stat().st_mtime for p in (path, *path.glob("*")))
            if age and time.time() - written < age:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, sealed: bool = True
) -> None:
    """Replace `path` by named tensors as safetensors, in one step, on the disk.

    The same tensors and metadata give the same bytes.

    Args:
        metadata: texts to keep with them.
        sealed: whether the file carries its own SHA-256, which load_tensors checks; false where a manifest has it.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    known = {**(metadata or {}), **({SEAL: BLANK} if sealed else {})}
    with storage_errors(path), _beside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors writes for the owner alone
        save_file(plain, temporary, metadata=known)
        temporary.chmod(mode)
        if known:
            _seal(temporary, sealed)
        fsync(temporary)


def _seal(path: Path, sealed: bool) -> None:
    """Sort the metadata of a safetensors file, whose order is random, and write the file's SHA-256 into it."""
    with open(path, "r+b") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the same values in another order have the same length"
        f.seek(8)
        f.write(text)
    if sealed:
        digest = sha256(path)
        with open(path, "r+b") as f:
            f.seek(8 + text.index(_entry(BLANK)))
            f.write(_entry(digest))


def _entry(digest: str) -> bytes:
    return f'"{SEAL}":{json.dumps(digest)}'.encode()


def _check_seal(path: Path) -> bool:
    """Compare a safetensors file with the SHA-256 that it carries; return whether it carries one.

    Raises:
        CheckpointError: it has another one.
    """
    with open(path, "rb") as f:
        start = f.read(8)
        header = f.read(min(int.from_bytes(start, "little"), path.stat().st_size))
        try:
            known = json.loads(header)["__metadata__"][SEAL]
        except (ValueError, KeyError, TypeError):
            return False  # of another program, or no safetensors file at all
        digest = hashlib.sha256(start + header.replace(_entry(str(known)), _entry(BLANK), 1))
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != known:
        raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one it names)")
    return True


def whole_tensors(path: Path) -> bool:
    """Return whether a sealed file of tensors is there and undamaged; warn where it is damaged."""
    if not path.exists():
        return False
    try:
        load_tensors(path)
        return _check_seal(path)
    except CheckpointError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=2)
        return False


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is absent, is no safetensors file, or not the one that save_tensors wrote. (A pickle
            is never opened.)
        StorageError: the operating system cannot read it.
    """
    try:
        _check_seal(path)
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None
    except OSError as error:
        raise failed_read(path, error) from None

"""Atomic writes, content hashes, and safetensors and JSON files that carry their own SHA-256."""

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

from ldae.core.errors import CheckpointError, Fault, OutOfMemory, OutputError, StorageError

# key of the hash in the metadata of a safetensors file, and its value while the hash of the file is computed
TENSOR_FILE_HASH, ZERO_HASH = "sha256", "0" * 64
CONTENT_HASH = "own"  # key of a sealed JSON object: the hash of all other keys
NO_MEMORY = ("can't allocate memory", "not enough memory")  # what torch's CPU allocator says
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
STALE_AFTER = 24 * 3600.0  # seconds without a write after which a temporary file counts as abandoned


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_hash(value: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of a JSON object without its key `own`."""
    return json_hash({key: item for key, item in value.items() if key != CONTENT_HASH})


@contextlib.contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Raise a Fault of one sentence where a write in the folder of `path` fails inside the block.

    Raises:
        OutputError: permissions or a read-only file system forbid the write.
        StorageError: the write fails for any other reason.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise _failed_write(path, int(number[1]) if number else 0, str(error)) from None
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(path.parent)):
            raise wrap_os_error(error) from None  # the block also reads files, which may lie elsewhere
        raise _failed_write(path, error.errno or 0, error.strerror or str(error)) from None


def _failed_write(path: Path, number: int, reason: str) -> Fault:
    if number in NOT_WRITABLE:
        return OutputError(f"writing {path} failed: {reason}; make it writable and run the same command again")
    advice = "free space there and " if number in DISK_FULL else ""
    return StorageError(f"writing {path} failed: {reason}; {advice}run the same command again")


def wrap_error(error: Exception) -> Fault:
    """Return the Fault that reports an error: itself, a storage fault, or an internal one for unexpected types."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, OSError):
        return wrap_os_error(error)
    if is_out_of_memory(error):
        tried = re.search(r"tried to allocate (\d+ bytes|[\d.]+ [KMG]iB)", str(error), re.IGNORECASE)
        size = f" ({tried[1]} more were needed)" if tried else ""
        return OutOfMemory(f"memory ran out{size}; lower train.batch or batch, or take a smaller network")
    return Fault(f"internal: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is Python's or torch's for memory that cannot be had, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in NO_MEMORY)


def wrap_os_error(error: OSError) -> Fault:
    """Return a Fault whose sentence names the file, the reason and the remedy of an operating system error.

    Args:
        error: with or without `errno`; the text of an error from a worker process is a whole traceback.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    reason = f"{name}: {error.strerror}" if name is not None and error.strerror else lines[-1]
    advice = "free space and " if error.errno in DISK_FULL else ""
    fault_class = OutputError if error.errno == errno.EROFS else StorageError
    return fault_class(f"{reason}; {advice}run the same command again")


def wrap_read_error(path: Path, error: OSError) -> Fault:
    """Return the fault for an unreadable file: CheckpointError if it is missing or damaged, else StorageError."""
    if error.errno in (*NOT_FOUND, errno.EIO):
        return CheckpointError(f"{path} cannot be read ({error.strerror})")
    return StorageError(f"reading {path} failed: {error.strerror or error}")


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents, and flush them to disk.

    Returns:
        The new folders, innermost first.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)
    return missing


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text` in one step: a reader sees the old file or the new one, never a part."""
    with open_atomic(path) as f:
        f.write(text.encode())


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` in one step, flushed to disk, when the block ends without error."""
    with wrap_write_errors(path), _replace_file(path) as temporary, open(temporary, "wb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file for the block to write and flush; it replaces `path` at the end."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` by a JSON value in one step."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        CheckpointError: the file is absent, is not JSON, or has another JSON value.
        StorageError: the operating system cannot read it.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise wrap_read_error(path, error) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of its content under the key `own`."""
    content = json.loads(json.dumps(dict(value)))  # as a reader will get it: tuples become lists, keys become strings
    write_json(path, {**content, CONTENT_HASH: content_hash(content)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that write_sealed_json wrote, without the key `own`; one without that key is not checked.

    Raises:
        CheckpointError: the file is absent, is not a JSON object, or its content does not match its hash.
        StorageError: the operating system cannot read it.
    """
    value = read_json(path)
    digest = content_hash(value)
    if value.pop(CONTENT_HASH, digest) != digest:
        raise CheckpointError(
            f"{path} is damaged (its content does not have the SHA-256 that it names); restore it, or remove it and "
            "run the same command again"
        )
    return value


@contextlib.contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` in one step, flushed to disk, when the block ends without error.

    It replaces an existing `target`. A block that raises leaves no files behind.
    """
    make_folder(target.parent)
    temporary = _temporary(target)
    with wrap_write_errors(target):
        temporary.mkdir()
        try:
            yield temporary
            for path in sorted(temporary.iterdir()):
                fsync(path)
            fsync(temporary)
            replace_folder(temporary, target)
            fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"


def replace_folder(new: Path, target: Path) -> None:
    """Rename a folder to `target`; an old `target` is renamed before removal, so that no reader sees a part of it."""
    if not target.exists():
        os.rename(new, target)
        return
    old = _temporary(target)
    os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder after renaming it to `.tmp-...`, so that a reader sees all of it or none."""
    with contextlib.suppress(FileNotFoundError):
        old = _temporary(path)
        os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)


def remove_temporary(folder: Path, age: float = STALE_AFTER) -> None:
    """Remove the files and folders `.tmp-...` that killed processes left in a folder.

    Args:
        age: seconds without a write after which one counts as abandoned; 0 where only this process writes.
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
    """Write named tensors to a safetensors file that replaces `path` in one step, flushed to disk.

    The same tensors and metadata give the same bytes.

    Args:
        tensors: name -> tensor, on any device.
        metadata: name -> text, stored in the header.
        sealed: whether the file carries its own SHA-256, which load_tensors checks; false where a manifest has it.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {**(metadata or {}), **({TENSOR_FILE_HASH: ZERO_HASH} if sealed else {})}
    with wrap_write_errors(path), _replace_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; safetensors makes files that only the owner can read
        save_file(plain, temporary, metadata=header)
        temporary.chmod(mode)
        if header:
            _seal(temporary, sealed)
        fsync(temporary)


def _seal(path: Path, sealed: bool) -> None:
    """Sort the metadata of a safetensors file, whose order is random; if `sealed`, store the file's SHA-256 in it."""
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
            f.seek(8 + text.index(_hash_entry(ZERO_HASH)))
            f.write(_hash_entry(digest))


def _hash_entry(digest: str) -> bytes:
    return f'"{TENSOR_FILE_HASH}":{json.dumps(digest)}'.encode()


def _check_seal(path: Path) -> bool:
    """Compare a safetensors file with the SHA-256 in its header; return False if there is none.

    Raises:
        CheckpointError: they differ.
    """
    with open(path, "rb") as f:
        start = f.read(8)
        header = f.read(min(int.from_bytes(start, "little"), path.stat().st_size))
        try:
            expected = json.loads(header)["__metadata__"][TENSOR_FILE_HASH]
        except (ValueError, KeyError, TypeError):
            return False  # another program wrote the file, or it is not a safetensors file
        digest = hashlib.sha256(start + header.replace(_hash_entry(str(expected)), _hash_entry(ZERO_HASH), 1))
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one it names)")
    return True


def has_intact_tensors(path: Path) -> bool:
    """Return whether a sealed safetensors file exists and matches its hash; warn if it is damaged."""
    if not path.exists():
        return False
    try:
        load_tensors(path)
        return _check_seal(path)
    except CheckpointError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=2)
        return False


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors file, on the CPU. Pickle files are refused.

    Raises:
        CheckpointError: the file is absent, is not a safetensors file, or does not match its hash.
        StorageError: the operating system cannot read it.
    """
    try:
        _check_seal(path)
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None
    except OSError as error:
        raise wrap_read_error(path, error) from None

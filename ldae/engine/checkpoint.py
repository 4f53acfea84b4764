"""Checkpoints that are whole or absent, and that are known to be whole before they are used.

A checkpoint is a folder of safetensors files and a manifest with the size and SHA-256 of each: tensors load
silently from a file with flipped bits, so our own hash is what detects damage. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldae.core.errors import CheckpointError
from ldae.core.files import (
    content_hash,
    load_tensors,
    publish_folder,
    read_json,
    remove_folder,
    save_tensors,
    sha256,
    wrap_read_error,
    write_json,
)

ATTEMPTS = 20  # to read the newest checkpoint of a run that goes on writing
FORMAT, FIRST = "ldae-checkpoint-2", "ldae-checkpoint-1"  # the first had no hash of the manifest itself


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        manifest: its manifest.json.
        hash: SHA-256 of that file: it names the checkpoint, since the file holds the hash of every other.
    """

    path: Path
    manifest: Mapping[str, Any]
    hash: str = ""

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, e.g. `ema`, on the CPU."""
        return load_tensors(self.path / f"{name}.safetensors")


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:09d}"


def listed(root: Path) -> list[Path]:
    """Checkpoint folders below `root`, the newest first; verified or not."""
    return sorted(root.glob("step-*"), reverse=True) if root.is_dir() else []


def verify(path: Path) -> Checkpoint:
    """The checkpoint in `path`, every file held against its hash.

    Raises:
        CheckpointError: naming what is missing or damaged.
        StorageError: the operating system cannot read it.
    """
    try:
        return _verified(path)
    except OSError as error:
        raise wrap_read_error(Path(error.filename or path), error) from None


def _verified(path: Path) -> Checkpoint:
    manifest = _manifest_of(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files or not isinstance(manifest.get("step"), int):
        raise CheckpointError(f"{path}: manifest.json lists no files or no step")
    if not all(isinstance(known, dict) and {"size", "sha256"} <= known.keys() for known in files.values()):
        raise CheckpointError(f"{path}: manifest.json lists a file without its size or hash")
    for name, known in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing")
        if file.stat().st_size != known["size"] or sha256(file) != known["sha256"]:
            raise CheckpointError(f"{path}: {name} is damaged (its SHA-256 is not the manifest's)")
    return Checkpoint(path, manifest, sha256(path / "manifest.json"))


def _manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest of the checkpoint in `path`, checked against its own hash.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") not in (FORMAT, FIRST):
        raise CheckpointError(f"{path}: manifest.json is not of format {FORMAT}")
    if manifest["format"] == FORMAT and manifest.get("own") != content_hash(manifest):
        raise CheckpointError(f"{path}: manifest.json is damaged (its SHA-256 is not the one it names)")
    return manifest


def publish(
    root: Path, tensors: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any], keep: int
) -> Checkpoint:
    """Writes a checkpoint, verifies it, and only then removes the oldest beyond `keep`.

    Args:
        root: folder of checkpoints.
        tensors: file name without suffix -> named tensors.
        manifest: what else to record; `step` among it.
        keep: how many to keep, at least 2.

    Raises:
        StorageError: the disk is full or fails; what was there before is untouched.
    """
    target = folder_of(root, int(manifest["step"]))
    with publish_folder(target) as temporary:
        files = {}
        for name, named in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_tensors(path, named, sealed=False)  # the manifest has its hash
            files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        whole = json.loads(json.dumps({**manifest, "format": FORMAT, "files": files}))  # as it will be read
        write_json(temporary / "manifest.json", {**whole, "own": content_hash(whole)})
    done = verify(target)
    for old in listed(root)[max(2, keep) :]:
        remove_folder(old)
    return done


def recorded(root: Path, key: str) -> Any:
    """Return what the newest readable manifest below `root` says of `key`; None where there is none."""
    for path in listed(root):
        with contextlib.suppress(CheckpointError):
            return _manifest_of(path).get(key)
    return None


def newest(root: Path, set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where there never was one.

    Damaged ones are reported and, with `set_aside`, renamed to `.bad-...`. Those that the run that writes them removes
    meanwhile are passed over.

    Raises:
        CheckpointError: there are checkpoints and none is whole.
    """
    for _ in range(ATTEMPTS):
        reasons, removed = [], False
        for path in listed(root):
            try:
                return verify(path)
            except CheckpointError as error:
                if not path.exists():
                    removed = True
                    continue
                reasons.append(str(error))
                print(f"warning: {error}; trying the one before", file=sys.stderr)
                if set_aside:
                    path.rename(root / f".bad-{path.name}-{int(time.time() * 1000):x}")
        if not removed:
            break
    if reasons or (root.is_dir() and any(root.glob(".bad-*"))):
        raise CheckpointError(f"no checkpoint in {root} is whole; remove that folder to begin anew")
    return None

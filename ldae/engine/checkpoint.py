"""Atomic checkpoints, verified before use.

A checkpoint is a folder of safetensors files and a manifest with the size and SHA-256 of each file, since safetensors
does not detect flipped bits. Nothing is pickled.
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

ATTEMPTS = 20  # at reading the newest checkpoint of a run that is still writing
FORMAT, FORMAT_1 = "ldae-checkpoint-2", "ldae-checkpoint-1"  # format 1 has no hash of the manifest


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: folder of the checkpoint.
        manifest: content of manifest.json.
        hash: SHA-256 of manifest.json, which identifies the checkpoint, since it contains all other hashes.
    """

    path: Path
    manifest: Mapping[str, Any]
    hash: str = ""

    @property
    def step(self) -> int:
        """Return the number of steps that were made."""
        return int(self.manifest["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file of the checkpoint, e.g. `ema`, on the CPU."""
        return load_tensors(self.path / f"{name}.safetensors")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return root / f"step-{step:09d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders below `root`, newest first, without verification."""
    return sorted(root.glob("step-*"), reverse=True) if root.is_dir() else []


def verify(path: Path) -> Checkpoint:
    """Return the checkpoint in `path` after a comparison of every file with its hash.

    Raises:
        CheckpointError: a file is missing or damaged.
        StorageError: the operating system cannot read a file.
    """
    try:
        return _verify(path)
    except OSError as error:
        raise wrap_read_error(Path(error.filename or path), error) from None


def _verify(path: Path) -> Checkpoint:
    manifest = _read_manifest(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files or not isinstance(manifest.get("step"), int):
        raise CheckpointError(f"{path}: manifest.json lists no files or no step")
    if not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in files.values()):
        raise CheckpointError(f"{path}: manifest.json lists a file without its size or hash")
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing")
        if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{path}: {name} is damaged (its SHA-256 is not the manifest's)")
    return Checkpoint(path, manifest, sha256(path / "manifest.json"))


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the checkpoint in `path` after a comparison with its own hash.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") not in (FORMAT, FORMAT_1):
        raise CheckpointError(f"{path}: manifest.json is not of format {FORMAT}")
    if manifest["format"] == FORMAT and manifest.get("own") != content_hash(manifest):
        raise CheckpointError(f"{path}: manifest.json is damaged (its SHA-256 is not the one it names)")
    return manifest


def publish(
    root: Path, tensors: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any], keep: int
) -> Checkpoint:
    """Write a checkpoint, verify it, and then remove the oldest beyond `keep`.

    Args:
        root: folder of checkpoints.
        tensors: file name without suffix -> named tensors.
        manifest: further entries of the manifest, with `step`.
        keep: number of checkpoints to keep, at least 2.

    Raises:
        StorageError: the disk is full or fails; earlier checkpoints are intact.
    """
    target = checkpoint_folder(root, int(manifest["step"]))
    with publish_folder(target) as temporary:
        files = {}
        for name, named in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_tensors(path, named, sealed=False)  # the manifest has its hash
            files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        content = json.loads(json.dumps({**manifest, "format": FORMAT, "files": files}))  # as a reader will get it
        write_json(temporary / "manifest.json", {**content, "own": content_hash(content)})
    checkpoint = verify(target)
    for old in list_checkpoints(root)[max(2, keep) :]:
        remove_folder(old)
    return checkpoint


def read_latest_record(root: Path, key: str) -> Any:
    """Return the value of `key` in the newest readable manifest below `root`; None if there is none."""
    for path in list_checkpoints(root):
        with contextlib.suppress(CheckpointError):
            return _read_manifest(path).get(key)
    return None


def newest(root: Path, set_aside: bool = True) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None if there never was one.

    A warning names each damaged checkpoint; with `set_aside` it is renamed to `.bad-...`. Checkpoints that a running
    training removes meanwhile are skipped.

    Args:
        root: folder of checkpoints.
        set_aside: whether to rename damaged checkpoints.

    Raises:
        CheckpointError: there are checkpoints and none is intact.
    """
    for _ in range(ATTEMPTS):
        reasons, removed = [], False
        for path in list_checkpoints(root):
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

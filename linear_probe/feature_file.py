"""Feature files: the train, hold-out and test features and labels of one encoder in an .npz archive."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from linear_probe.features import Features, digest
from linear_probe.subsets import tenth

PIECE = 1 << 26  # bytes that are read at once


@dataclass(frozen=True)
class NpyHeader:
    """The header of an array in NumPy's format.

    Attributes:
        shape: of it.
        fortran_order: whether it lies in Fortran's order.
        kind: of its numbers.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    kind: np.dtype


class NpzArrays:
    """Features and labels of splits, as NAME_x and NAME_y.

    Args:
        file: the open archive.
    """

    def __init__(self, file: zipfile.ZipFile):
        self.file = file
        self.names = {name.removesuffix(".npy") for name in file.namelist()}

    def shape(self, split: str) -> tuple[int, int]:
        """(N, D) of the features of a split.

        Raises:
            ValueError: there are none, or features and labels do not belong together; says what is wrong.
        """
        for key in (f"{split}_x", f"{split}_y"):
            if key not in self.names:
                raise ValueError(f"has no {key}; there are: {', '.join(sorted(self.names)) or 'no arrays'}")
        (x, y), message = (self._head(f"{split}_{key}") for key in "xy"), f"has {split}_x"
        if len(x.shape) != 2 or y.shape != x.shape[:1] or 0 in x.shape:
            raise ValueError(f"{message} {x.shape} and {split}_y {y.shape}; (N, D) and (N,) with N, D > 0 are needed")
        if x.kind.kind != "f" or y.kind.kind not in "iu":
            raise ValueError(f"{message} of {x.kind} and {split}_y of {y.kind}; numbers and class indices from 0 do")
        return x.shape[0], x.shape[1]

    def labels(self, split: str) -> Tensor:
        """(N,) int64 classes.

        Raises:
            ValueError: one is negative.
        """
        y = self._array(f"{split}_y")
        if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
            raise ValueError(f"has {split}_y up to {y.max()}, which is no class index")
        if y.min() < 0:
            raise ValueError(f"has {split}_y down to {y.min()}; class indices from 0 do")
        return torch.from_numpy(y.astype(np.int64))

    def text(self, name: str) -> str:
        """A text that was kept with the arrays; empty if there is none."""
        return str(self._array(name)) if name in self.names else ""

    def scatter(self, split: str, out: Tensor, rows: Tensor) -> None:
        """Writes the features of a split, (N, D), into those rows of `out`, (M, D) float32, that `rows`, (N,), names.

        Raises:
            ValueError: a number is not finite.
        """
        done = 0
        for piece in self._pieces(f"{split}_x"):
            found = torch.from_numpy(np.array(piece, dtype=np.float32))
            if not found.isfinite().all():
                raise ValueError(f"has numbers in {split}_x that are not finite")
            out[rows[done : done + len(found)]] = found
            done += len(found)

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        """Some rows of a matrix after the other."""
        with self._opened(name) as (stream, head):
            if head.fortran_order:
                yield self._array(name)
                return
            left, of_row = head.shape[0], head.kind.itemsize * head.shape[1]
            while left:
                count = min(left, max(1, PIECE // max(1, of_row)))
                read = stream.read(count * of_row)
                if len(read) < count * of_row:
                    raise ValueError(f"ends within {name}; write it again")
                yield np.frombuffer(read, head.kind).reshape(count, head.shape[1])
                left -= count

    def _array(self, name: str) -> np.ndarray:
        with self.file.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _head(self, name: str) -> NpyHeader:
        with self._opened(name) as (_, head):
            return head

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], NpyHeader]]:
        """An array's numbers as a stream, after its head."""
        with self.file.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"has {name} in a format that this program does not know, {version}")
            head = NpyHeader(*read[version](stream))
            if head.kind.hasobject:
                raise ValueError(f"is no .npz file of plain arrays ({name} holds objects)")
            numbers = head.kind.itemsize
            for length in head.shape:
                numbers *= length
            if numbers > self.file.getinfo(f"{name}.npy").file_size:
                raise ValueError(f"ends within {name}; write it again")
            yield stream, head


# what zipfile, zlib and numpy raise at a damaged file, beside ValueError
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError, SyntaxError, OverflowError)
SPLITS = ("train", "holdout", "test")
MEMBERS = "members"  # of the file: the names of all its other arrays
MOST_CLASSES = 100_000  # heads have a column for each class up to the highest


@dataclass(frozen=True)
class FeatureFile:
    """The contents of a feature file.

    Attributes:
        splits: by name; the hold-out is a tenth of train where the file has none.
        fingerprint: of the images, as far as they can be told apart: the file's own, else a hash of all labels.
        hash: SHA-256 of the file.
    """

    splits: Mapping[str, Features]
    fingerprint: str
    hash: str

    @property
    def classes(self) -> int:
        """Return the number of classes: the highest label plus one."""
        return 1 + max(int(found.y.max()) for found in self.splits.values())


def read_features(path: Path) -> FeatureFile:
    """Features from an .npz with train_x (N, D), train_y (N,), test_x, test_y and, if there are, holdout_x, holdout_y.

    Without a hold-out, a tenth of each class of train becomes one, the same in every call. Train and hold-out lie in
    memory once, one after the other, so that the two together are a view.

    Raises:
        ValueError: the file is not such a one; says what is wrong with it.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(NpzArrays(file), digest(path))
    except DAMAGE as error:
        raise ValueError(f"is no .npz file of plain arrays ({error})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset that lies before the file
            raise ValueError(f"is no .npz file of plain arrays ({error.strerror})") from None
        raise


def _read(file: NpzArrays, hash_: str) -> FeatureFile:
    listed = file.text(MEMBERS)
    if listed and set(listed.split()) != file.names - {MEMBERS}:  # zip guards contents alone, not names
        raise ValueError(f"is damaged: it holds {' '.join(sorted(file.names - {MEMBERS}))} and lists {listed}")
    names = [name for name in SPLITS if name != "holdout" or "holdout_x" in file.names]
    shapes = {name: file.shape(name) for name in names}
    if len({shape[1] for shape in shapes.values()}) > 1:
        message = ", ".join(f"{name}_x {shape}" for name, shape in shapes.items())
        raise ValueError(f"has features of different dimensions: {message}")
    labels = {name: file.labels(name) for name in names}
    highest = max(int(found.max()) for found in labels.values())
    if highest >= MOST_CLASSES:
        raise ValueError(f"has class {highest:,} among its labels; class indices are below {MOST_CLASSES:,}")
    train = labels["train"]
    held = torch.zeros(len(train), dtype=torch.bool) if "holdout" in names else tenth(train)
    y = torch.cat([train[~held], labels.get("holdout", train[held])])
    start = int((~held).sum())
    if len(y) == start:
        raise ValueError(f"has {len(train)} training images, too few for a hold-out; give holdout_x and holdout_y")
    x, test = (torch.empty(count, shapes["train"][1]) for count in (len(y), len(labels["test"])))
    file.scatter("train", x, torch.where(held, start - 1 + held.cumsum(0), (~held).cumsum(0) - 1))
    if "holdout" in names:
        file.scatter("holdout", x, torch.arange(start, len(x)))
    file.scatter("test", test, torch.arange(len(test)))
    parts = (Features(x[:start], y[:start]), Features(x[start:], y[start:]), Features(test, labels["test"]))
    every = hashlib.sha256(b"".join(part.y.numpy().tobytes() for part in parts)).hexdigest()
    own = file.text("fingerprint")
    return FeatureFile(dict(zip(SPLITS, parts, strict=True)), own or f"labels-{every}", hash_)


def write_features(path: Path, splits: Mapping[str, Features], **message: str) -> None:
    """Writes such a file in one step.

    Args:
        splits: train, holdout and test.
        message: texts to keep with them, e.g. `fingerprint`.
    """
    arrays: dict[str, Any] = {
        f"{name}_{key}": getattr(found, key).numpy() for name, found in splits.items() for key in "xy"
    }
    arrays |= {key: np.array(text) for key, text in message.items()}
    arrays[MEMBERS] = np.array(" ".join(sorted(arrays)))
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(temporary, "wb") as f:
            np.savez(f, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

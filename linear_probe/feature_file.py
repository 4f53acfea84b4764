"""Read and write feature files: train, hold-out and test features and labels of one encoder in an .npz archive."""

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
from linear_probe.subsets import holdout_mask

PIECE = 1 << 26  # bytes per read


@dataclass(frozen=True)
class NpyHeader:
    """Header of an array in NumPy's format.

    Attributes:
        shape: shape of the array.
        fortran_order: whether the array is stored in column-major order.
        dtype: type of its numbers.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


class NpzArrays:
    """Arrays of an .npz archive: features and labels of splits, as NAME_x and NAME_y.

    Args:
        file: the open archive.
    """

    def __init__(self, file: zipfile.ZipFile):
        self.file = file
        self.names = {name.removesuffix(".npy") for name in file.namelist()}

    def shape(self, split: str) -> tuple[int, int]:
        """Return the shape (N, D) of the features of a split.

        Raises:
            ValueError: an array is missing, or has the wrong shape or type.
        """
        for key in (f"{split}_x", f"{split}_y"):
            if key not in self.names:
                raise ValueError(f"has no {key}; there are: {', '.join(sorted(self.names)) or 'no arrays'}")
        (x, y), message = (self._head(f"{split}_{key}") for key in "xy"), f"has {split}_x"
        if len(x.shape) != 2 or y.shape != x.shape[:1] or 0 in x.shape:
            raise ValueError(f"{message} {x.shape} and {split}_y {y.shape}; (N, D) and (N,) with N, D > 0 are needed")
        if x.dtype.kind != "f" or y.dtype.kind not in "iu":
            raise ValueError(f"{message} of {x.dtype} and {split}_y of {y.dtype}; numbers and class indices from 0 do")
        return x.shape[0], x.shape[1]

    def labels(self, split: str) -> Tensor:
        """Return the labels of a split, (N,) int64.

        Raises:
            ValueError: a label is negative or exceeds int64.
        """
        y = self._array(f"{split}_y")
        if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
            raise ValueError(f"has {split}_y up to {y.max()}, which is no class index")
        if y.min() < 0:
            raise ValueError(f"has {split}_y down to {y.min()}; class indices from 0 do")
        return torch.from_numpy(y.astype(np.int64))

    def text(self, name: str) -> str:
        """Return a text stored with the arrays; empty if there is none."""
        return str(self._array(name)) if name in self.names else ""

    def scatter(self, split: str, out: Tensor, rows: Tensor) -> None:
        """Read the features of a split into rows of a tensor.

        Args:
            split: name of the split, of N images.
            out: (M, D) float32, filled in place.
            rows: (N,) int64, the row of `out` for each image.

        Raises:
            ValueError: a number is not finite.
        """
        done = 0
        for piece in self._pieces(f"{split}_x"):
            features = torch.from_numpy(np.array(piece, dtype=np.float32))
            if not features.isfinite().all():
                raise ValueError(f"has numbers in {split}_x that are not finite")
            out[rows[done : done + len(features)]] = features
            done += len(features)

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        """Yield a matrix in blocks of rows."""
        with self._opened(name) as (stream, head):
            if head.fortran_order:
                yield self._array(name)
                return
            left, of_row = head.shape[0], head.dtype.itemsize * head.shape[1]
            while left:
                count = min(left, max(1, PIECE // max(1, of_row)))
                read = stream.read(count * of_row)
                if len(read) < count * of_row:
                    raise ValueError(f"ends within {name}; write it again")
                yield np.frombuffer(read, head.dtype).reshape(count, head.shape[1])
                left -= count

    def _array(self, name: str) -> np.ndarray:
        with self.file.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _head(self, name: str) -> NpyHeader:
        with self._opened(name) as (_, head):
            return head

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], NpyHeader]]:
        """Open an array as a stream positioned after its header."""
        with self.file.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"has {name} in a format that this program does not know, {version}")
            head = NpyHeader(*read[version](stream))
            if head.dtype.hasobject:
                raise ValueError(f"is no .npz file of plain arrays ({name} holds objects)")
            numbers = head.dtype.itemsize
            for length in head.shape:
                numbers *= length
            if numbers > self.file.getinfo(f"{name}.npy").file_size:
                raise ValueError(f"ends within {name}; write it again")
            yield stream, head


# errors of zipfile, zlib and numpy at a damaged file, in addition to ValueError
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError, SyntaxError, OverflowError)
SPLITS = ("train", "holdout", "test")
MEMBERS = "members"  # array with the names of all other arrays of the file
MOST_CLASSES = 100_000  # heads have a column for each class index up to the highest


@dataclass(frozen=True)
class FeatureFile:
    """Contents of a feature file.

    Attributes:
        splits: {split: features}; the hold-out is a tenth of train where the file has none.
        fingerprint: fingerprint of the images stored in the file, else a hash of all labels.
        hash: SHA-256 of the file.
    """

    splits: Mapping[str, Features]
    fingerprint: str
    hash: str

    @property
    def classes(self) -> int:
        """Return the number of classes: the highest label plus one."""
        return 1 + max(int(features.y.max()) for features in self.splits.values())


def read_features(path: Path) -> FeatureFile:
    """Read an .npz file with train_x (N, D), train_y (N,), test_x, test_y and, optionally, holdout_x, holdout_y.

    Without a hold-out, a tenth of each training class is held out, the same images in every call. Train and hold-out
    share one tensor, one after the other, so that their union is a view.

    Raises:
        ValueError: the file is not of this format; the message names the defect.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _read(NpzArrays(file), digest(path))
    except DAMAGE as error:
        raise ValueError(f"is no .npz file of plain arrays ({error})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset before the start of the file
            raise ValueError(f"is no .npz file of plain arrays ({error.strerror})") from None
        raise


def _read(file: NpzArrays, hash_: str) -> FeatureFile:
    listed = file.text(MEMBERS)
    if listed and set(listed.split()) != file.names - {MEMBERS}:  # a zip file has checksums of contents, not of names
        raise ValueError(f"is damaged: it holds {' '.join(sorted(file.names - {MEMBERS}))} and lists {listed}")
    names = [name for name in SPLITS if name != "holdout" or "holdout_x" in file.names]
    shapes = {name: file.shape(name) for name in names}
    if len({shape[1] for shape in shapes.values()}) > 1:
        message = ", ".join(f"{name}_x {shape}" for name, shape in shapes.items())
        raise ValueError(f"has features of different dimensions: {message}")
    labels = {name: file.labels(name) for name in names}
    highest = max(int(y.max()) for y in labels.values())
    if highest >= MOST_CLASSES:
        raise ValueError(f"has class {highest:,} among its labels; class indices are below {MOST_CLASSES:,}")
    train = labels["train"]
    held = torch.zeros(len(train), dtype=torch.bool) if "holdout" in names else holdout_mask(train)
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


def write_features(path: Path, splits: Mapping[str, Features], **texts: str) -> None:
    """Write a feature file atomically.

    Args:
        path: the .npz file.
        splits: features of train, holdout and test.
        texts: texts to store with them, e.g. `fingerprint`.
    """
    arrays: dict[str, Any] = {
        f"{name}_{key}": getattr(features, key).numpy() for name, features in splits.items() for key in "xy"
    }
    arrays |= {key: np.array(text) for key, text in texts.items()}
    arrays[MEMBERS] = np.array(" ".join(sorted(arrays)))
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(temporary, "wb") as f:
            np.savez(f, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

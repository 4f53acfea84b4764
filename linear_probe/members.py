"""The arrays of an .npz file, checked and read in pieces: features may be larger than memory holds twice."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 26  # bytes that are read at once


@dataclass(frozen=True)
class Head:
    """What an array says of itself.

    Attributes:
        shape: of it.
        turned: whether it lies in Fortran's order.
        kind: of its numbers.
    """

    shape: tuple[int, ...]
    turned: bool
    kind: np.dtype


class Members:
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
        (x, y), told = (self._head(f"{split}_{key}") for key in "xy"), f"has {split}_x"
        if len(x.shape) != 2 or y.shape != x.shape[:1] or 0 in x.shape:
            raise ValueError(f"{told} {x.shape} and {split}_y {y.shape}; (N, D) and (N,) with N, D > 0 are needed")
        if x.kind.kind != "f" or y.kind.kind not in "iu":
            raise ValueError(f"{told} of {x.kind} and {split}_y of {y.kind}; numbers and class indices from 0 do")
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
            if head.turned:
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

    def _head(self, name: str) -> Head:
        with self._opened(name) as (_, head):
            return head

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], Head]]:
        """An array's numbers as a stream, after its head."""
        with self.file.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"has {name} in a format that this program does not know, {version}")
            head = Head(*read[version](stream))
            if head.kind.hasobject:
                raise ValueError(f"is no .npz file of plain arrays ({name} holds objects)")
            numbers = head.kind.itemsize
            for length in head.shape:
                numbers *= length
            if numbers > self.file.getinfo(f"{name}.npy").file_size:
                raise ValueError(f"ends within {name}; write it again")
            yield stream, head

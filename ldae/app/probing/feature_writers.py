"""Write the features of a data set to an .npz archive or a parquet table, in batches, with paths, splits and labels."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ldae.core.errors import ConfigError, DataError
from ldae.core.files import open_atomic
from linear_probe.feature_file import MEMBERS

NPZ, PARQUET = ".npz", ".parquet"
ROW_GROUP = 4096  # rows of a parquet file that are written at a time


@dataclass(frozen=True)
class Piece:
    """Features of a batch of images.

    Attributes:
        x: (B, D) float32 features.
        y: (B,) int64 labels; -1 without one.
        paths: B paths of the images, or names where they are not files.
    """

    x: np.ndarray
    y: np.ndarray
    paths: list[str]


class FeatureWriter(Protocol):
    """Writer of the features of one split after the other."""

    def write_split(self, split: str, count: int, pieces: Iterable[Piece]) -> None:
        """Write the `count` images of a split."""

    def close(self) -> None:
        """Write what follows the last split."""


class NpzWriter:
    """Writes SPLIT_x (N, D), SPLIT_y (N,) where there are labels, and SPLIT_path (N,), one array at a time.

    Args:
        file: binary file, positioned at its start.
        labelled: whether the images have labels.
        texts: texts to store as arrays of their own.
    """

    def __init__(self, file: IO[bytes], labelled: bool, texts: Mapping[str, str]):
        self.archive, self.labelled = zipfile.ZipFile(file, "w"), labelled
        self.names: list[str] = []
        for name, text in texts.items():
            self._array(name, np.array(text))

    def write_split(self, split: str, count: int, pieces: Iterable[Piece]) -> None:
        """Write the `count` images of a split."""
        labels: list[np.ndarray] = []
        paths: list[str] = []
        with self._member(f"{split}_x") as member:
            for piece in pieces:
                if not labels:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (count, piece.x.shape[1])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(piece.x, "<f4").data)
                labels.append(piece.y)
                paths += piece.paths
        if self.labelled:
            self._array(f"{split}_y", np.concatenate(labels))
        self._array(f"{split}_path", np.array(paths))

    def close(self) -> None:
        """Write the list of the arrays, which `ldae probe` checks, and the archive's directory."""
        self._array(MEMBERS, np.array(" ".join(sorted(self.names))))
        self.archive.close()

    def _array(self, name: str, array: np.ndarray) -> None:
        with self._member(name) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)

    @contextlib.contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        self.names.append(name)
        with self.archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            yield member


class ParquetWriter:
    """Writes a table with the columns path, split, label (null without labels) and features, a list of D float32.

    Args:
        file: binary file, positioned at its start.
        labelled: whether the images have labels.
        texts: metadata of the table, UTF-8.
    """

    def __init__(self, file: IO[bytes], labelled: bool, texts: Mapping[str, str]):
        self.file, self.labelled, self.texts = file, labelled, texts
        self.table: Any = None

    def write_split(self, split: str, count: int, pieces: Iterable[Piece]) -> None:
        """Write the `count` images of a split, in groups of some thousand rows."""
        waiting: list[Piece] = []
        for piece in pieces:
            waiting.append(piece)
            if sum(len(p.paths) for p in waiting) >= ROW_GROUP:
                self._write(split, waiting)
                waiting = []
        if waiting:
            self._write(split, waiting)

    def close(self) -> None:
        """Write the footer of the table."""
        if self.table is not None:
            self.table.close()

    def _write(self, split: str, pieces: list[Piece]) -> None:
        import pyarrow
        from pyarrow import parquet

        x, y = (np.concatenate([getattr(piece, key) for piece in pieces]) for key in "xy")
        paths = [path for piece in pieces for path in piece.paths]
        kind = pyarrow.list_(pyarrow.float32(), x.shape[1])
        columns = {
            "path": pyarrow.array(paths, pyarrow.string()),
            "split": pyarrow.array([split] * len(paths), pyarrow.string()),
            "label": pyarrow.array(y if self.labelled else [None] * len(paths), pyarrow.int64()),
            "features": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.reshape(-1)), type=kind),
        }
        table = pyarrow.table(columns, metadata=dict(self.texts))
        if self.table is None:
            self.table = parquet.ParquetWriter(self.file, table.schema)
        self.table.write_table(table)


Opener = Callable[[IO[bytes], bool, Mapping[str, str]], FeatureWriter]
WRITERS: Mapping[str, Opener] = {NPZ: NpzWriter, PARQUET: ParquetWriter}


def check_file(path: Path) -> None:
    """Check that features can be written to a file, before any work.

    Raises:
        ConfigError: the name has another ending, is a folder's, or lies in none; or a package is missing.
    """
    if path.suffix not in WRITERS:
        raise ConfigError("out", str(path), f"must end in {' or '.join(WRITERS)}")
    if path.is_dir():
        raise ConfigError("out", str(path), "is a folder; give a file, e.g. out=features.npz")
    if not path.absolute().parent.is_dir():
        raise ConfigError("out", str(path), "lies in a folder that does not exist; make it first")
    if path.suffix == PARQUET and not find_spec("pyarrow"):
        raise ConfigError("out", str(path), "needs pyarrow; pip install 'ldae[parquet]', or give FILE.npz")


@contextlib.contextmanager
def open_writer(path: Path, classes: Iterable[str], **texts: str) -> Iterator[FeatureWriter]:
    """Open a writer; the file replaces an older one when the block ends without error.

    Args:
        path: of the file; its ending selects the format.
        classes: names of the classes; none if the images have no labels.
        texts: texts to store with the features.
    """
    names = list(classes)
    with open_atomic(path) as file:
        writer = WRITERS[path.suffix](file, bool(names), {**texts, "classes": json.dumps(names)})
        yield writer
        writer.close()


def checked(x: np.ndarray, feature_key: object) -> np.ndarray:
    """Return features after checking that they are finite.

    Raises:
        DataError: a number is NaN or infinite.
    """
    if not np.isfinite(x).all():
        raise DataError(f"features at {feature_key} are not finite; nothing was written")
    return x

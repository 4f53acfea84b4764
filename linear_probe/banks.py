"""Features in a file: train, test and, if it has one, a hold-out, as arrays with labels."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linear_probe.features import Features, digest
from linear_probe.members import Members
from linear_probe.subsets import tenth

# what zipfile, zlib and numpy raise at a damaged file, beside ValueError
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError, SyntaxError, OverflowError)
SPLITS = ("train", "holdout", "test")
MEMBERS = "members"  # of the file: the names of all its other arrays
MOST_CLASSES = 100_000  # heads have a column for each class up to the highest


@dataclass(frozen=True)
class FeatureFile:
    """What a file of features holds.

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
        """How many classes the labels have, 0 to the highest."""
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
            return _read(Members(file), digest(path))
    except DAMAGE as error:
        raise ValueError(f"is no .npz file of plain arrays ({error})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset that lies before the file
            raise ValueError(f"is no .npz file of plain arrays ({error.strerror})") from None
        raise


def _read(file: Members, hash_: str) -> FeatureFile:
    listed = file.text(MEMBERS)
    if listed and set(listed.split()) != file.names - {MEMBERS}:  # zip guards contents alone, not names
        raise ValueError(f"is damaged: it holds {' '.join(sorted(file.names - {MEMBERS}))} and lists {listed}")
    names = [name for name in SPLITS if name != "holdout" or "holdout_x" in file.names]
    shapes = {name: file.shape(name) for name in names}
    if len({shape[1] for shape in shapes.values()}) > 1:
        told = ", ".join(f"{name}_x {shape}" for name, shape in shapes.items())
        raise ValueError(f"has features of different dimensions: {told}")
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


def write_features(path: Path, splits: Mapping[str, Features], **told: str) -> None:
    """Writes such a file in one step.

    Args:
        splits: train, holdout and test.
        told: texts to keep with them, e.g. `fingerprint`.
    """
    arrays: dict[str, Any] = {
        f"{name}_{key}": getattr(found, key).numpy() for name, found in splits.items() for key in "xy"
    }
    arrays |= {key: np.array(text) for key, text in told.items()}
    arrays[MEMBERS] = np.array(" ".join(sorted(arrays)))
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(temporary, "wb") as f:
            np.savez(f, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Features in a file: train, test and, if it has one, a hold-out, as arrays with labels."""

from __future__ import annotations

import hashlib
import os
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_probe.features import Features
from linear_probe.subsets import tenth

SPLITS = ("train", "holdout", "test")


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

    Without a hold-out, a tenth of each class of train becomes one, the same in every call.

    Raises:
        ValueError: the file is not such a one; says what is wrong with it.
        OSError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"is no .npz file of plain arrays ({error})") from None
    splits = {name: _split(arrays, name) for name in SPLITS if name != "holdout" or "holdout_x" in arrays}
    if "holdout" not in splits:
        held, train = tenth(splits["train"].y), splits["train"]
        if not held.any():
            raise ValueError(f"has {len(train)} training images, too few for a hold-out; give holdout_x and holdout_y")
        splits |= {"train": Features(train.x[~held], train.y[~held]), "holdout": Features(train.x[held], train.y[held])}
    if len({found.x.shape[1] for found in splits.values()}) > 1:
        told = ", ".join(f"{name}_x {tuple(found.x.shape)}" for name, found in splits.items())
        raise ValueError(f"has features of different dimensions: {told}")
    labels = hashlib.sha256(b"".join(splits[name].y.numpy().tobytes() for name in SPLITS)).hexdigest()
    own = str(arrays["fingerprint"]) if "fingerprint" in arrays else f"labels-{labels}"
    return FeatureFile(splits, own, hashlib.sha256(path.read_bytes()).hexdigest())


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
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(temporary, "wb") as f:
            np.savez(f, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _split(arrays: Mapping[str, np.ndarray], name: str) -> Features:
    for key in (f"{name}_x", f"{name}_y"):
        if key not in arrays:
            raise ValueError(f"has no {key}; there are: {', '.join(sorted(arrays)) or 'no arrays'}")
    x, y = arrays[f"{name}_x"], arrays[f"{name}_y"]
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ValueError(f"has {name}_x {x.shape} and {name}_y {y.shape} where (N, D) and (N,) with N > 0 are needed")
    if x.dtype.kind != "f" or y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(f"has {name}_x of {x.dtype} and {name}_y of {y.dtype}; numbers and class indices from 0 do")
    if not np.isfinite(x).all():
        raise ValueError(f"has numbers in {name}_x that are not finite")
    return Features(_tensor(x, np.float32), _tensor(y, np.int64))


def _tensor(array: np.ndarray, kind: type) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))

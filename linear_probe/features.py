"""Features: extracted once and memory-mapped, and the sources that protocols read them from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linear_probe.subsets import Part

LABELS = "labels"  # file of a bank


class ImageBatch(Protocol):
    """A batch of a loader: images (B, 3, H, W) in [0, 1] and their labels (B,)."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


@dataclass(frozen=True, order=True)
class FeatureKey:
    """The place that features are read at: one column of a bank.

    Attributes:
        layer: of the network, 0 where there is none.
        t: step of the noise level.
        input: `clean` or `noised`.
        pooling: how tokens became one vector.
    """

    layer: int = 0
    t: int = 0
    input: str = "clean"
    pooling: str = "mean"

    def __str__(self) -> str:
        return f"layer{self.layer}-t{self.t}-{self.input}-{self.pooling}"


@dataclass(frozen=True)
class Features:
    """Features of some images under one cell, and the images' labels.

    Attributes:
        x: (N, D) float32.
        y: (N,) int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Bank:
    """Features of one split for several cells, each an (N, D) float32 memory map.

    Args:
        folder: where `extract` put it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.y = torch.from_numpy(np.load(folder / f"{LABELS}.npy"))

    def __getitem__(self, feature_key: FeatureKey) -> Features:
        return Features(_mapped(self.folder / f"{feature_key}.npy"), self.y)


Encode = Callable[[Any], Mapping[FeatureKey, Tensor]]


def extract(
    encode: Encode, feature_keys: Sequence[FeatureKey], batches: Iterable[ImageBatch], count: int, folder: Path
) -> Bank:
    """Features of every image for every cell in one pass over the images, or those found from before.

    Args:
        encode: one of `batches` -> {cell: (B, D)}.
        cells: which cells to keep.
        batches: all images, in order.
        count: N, how many images there are.
        folder: where to put them, or find them whole. Its name must tell encoder and images apart.

    Returns:
        The bank; the folder appears all at once when it is complete.
    """
    if _whole(folder, feature_keys, count):
        return Bank(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.parent / f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}" for _ in range(2))
    temporary.mkdir()
    try:
        _fill(encode, feature_keys, batches, count, temporary)
        if folder.exists():
            os.rename(folder, old)  # so that no part of it remains under its name
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return Bank(folder)


def _fill(
    encode: Encode, feature_keys: Sequence[FeatureKey], batches: Iterable[ImageBatch], count: int, folder: Path
) -> None:
    labels, done = np.empty(count, dtype=np.int64), 0
    for batch in batches:
        found = encode(batch)
        stop = done + len(batch.labels)
        for feature_key in feature_keys:
            _append(folder / f"{feature_key}.npy", found[feature_key].float().cpu().numpy(), count, feature_key)
        labels[done:stop] = batch.labels.cpu().numpy()
        done = stop
    if done != count:
        raise ValueError(f"{done} images came where {count} were announced")
    np.save(folder / f"{LABELS}.npy", labels)
    hashes = {name: digest(folder / f"{name}.npy") for name in (LABELS, *map(str, feature_keys))}
    (folder / "meta.json").write_text(json.dumps({"count": count, "sha256": hashes}))


def _append(path: Path, rows: np.ndarray, count: int, feature_key: FeatureKey) -> None:
    """Write rows (B, D) at the end of an .npy file of `count` rows: a full disk is an error where a map would crash.

    Raises:
        ValueError: they are not finite.
        OSError: the disk is full or fails.
    """
    if not np.isfinite(rows).all():
        raise ValueError(f"features at {feature_key} are not finite")
    with open(path, "ab") as file:
        if file.tell() == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, rows.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(rows, "<f4").data)


def _whole(folder: Path, feature_keys: Sequence[FeatureKey], count: int) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        hashes = meta["sha256"]
        names = (LABELS, *map(str, feature_keys))
        return meta["count"] == count and all(digest(folder / f"{n}.npy") == hashes[n] for n in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # copy on write: the file is never changed


# features of a batch at every cell, {cell: (B, D)}, and its labels (B,)
Encoded = tuple[Mapping[FeatureKey, Tensor], Tensor]


class Source(Protocol):
    """Features of one encoder.

    Attributes:
        feature_keys: columns among which a protocol chooses.
    """

    @property
    def feature_keys(self) -> Sequence[FeatureKey]: ...

    def features(self, part: Part, feature_key: FeatureKey) -> Features:
        """Features of the images of a part, as they are."""

    def count(self, parts: Sequence[Part]) -> int:
        """Return the number of images in the parts."""

    def stream(
        self, parts: Sequence[Part], feature_keys: Sequence[FeatureKey], augment: str, batch: int, seed: int
    ) -> Iterator[Encoded]:
        """Batches of augmented images of all the parts together without end, each epoch in an order of its own.

        An image looks different in every epoch. The last, incomplete batch of an epoch is left out.

        Args:
            augment: name of the augmentation.
            batch: images of a batch.
            seed: of order and augmentation.
        """

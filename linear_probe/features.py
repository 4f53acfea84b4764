"""Extract features once into memory-mapped banks, and declare the source that protocols read features from."""

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

LABELS, META = "labels", "meta.json"  # files of a bank


class ImageBatch(Protocol):
    """Batch of a loader: images (B, 3, H, W) in [0, 1] and their labels (B,)."""

    @property
    def images(self) -> Tensor:
        """Return the images, (B, 3, H, W) in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """Return the labels, (B,) int64; negative for an image without one."""


@dataclass(frozen=True, order=True)
class FeatureKey:
    """Key of the features of one layer, noise level, input and pooling.

    Attributes:
        layer: layer of the network, from 1; 0 where there is none.
        t: diffusion step of the noise level.
        input: `clean` or `noised`.
        pooling: name of the pooling of tokens to one vector (linear_probe.pooling).
        further: further diffusion steps whose features are combined with those at `t`.
        combine: how: `concat` or `mean`; empty for a single step.
    """

    layer: int = 0
    t: int = 0
    input: str = "clean"
    pooling: str = "mean"
    further: tuple[int, ...] = ()
    combine: str = ""

    def __str__(self) -> str:
        steps = "+".join(map(str, (self.t, *self.further)))
        return f"layer{self.layer}-t{steps}-{self.input}-{self.pooling_and_combination}"

    @property
    def pooling_and_combination(self) -> str:
        """Return the pooling, and how steps are combined if they are: `mean`, `mean-concat`."""
        return f"{self.pooling}-{self.combine}" if self.combine else self.pooling

    def single(self) -> list[FeatureKey]:
        """Return the keys of the features that are combined, or the key itself."""
        return [FeatureKey(self.layer, t, self.input, self.pooling) for t in (self.t, *self.further)]


@dataclass(frozen=True)
class Features:
    """Features of images at one feature key, and the images' labels.

    Attributes:
        x: (N, D) float32.
        y: (N,) int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Bank:
    """Features of one split at several feature keys, each an (N, D) float32 memory map.

    Args:
        folder: folder that `extract` wrote.

    Raises:
        ValueError: the folder holds no complete bank.
    """

    def __init__(self, folder: Path):
        if not (folder / META).is_file():  # written last
            raise ValueError(f"{folder} holds no complete bank of features; remove it and extract them again")
        self.folder = folder
        self.y = torch.from_numpy(np.load(folder / f"{LABELS}.npy"))

    def __getitem__(self, feature_key: FeatureKey) -> Features:
        return Features(_mapped(self.folder / f"{feature_key}.npy"), self.y)


Encode = Callable[[Any], Mapping[FeatureKey, Tensor]]


def extract(
    encode: Encode, feature_keys: Sequence[FeatureKey], batches: Iterable[ImageBatch], count: int, folder: Path
) -> Bank:
    """Extract the features of every image in one pass, or open those that an earlier call has extracted.

    Args:
        encode: function from a batch to {feature key: (B, D)}.
        feature_keys: feature keys to store.
        batches: all images, in order.
        count: number of images N.
        folder: folder of the bank, renamed into place when it is complete. Its name must identify encoder and images.

    Returns:
        The bank.

    Raises:
        ValueError: features are not finite, or the number of images is not `count`.
    """
    if _is_intact(folder, feature_keys, count):
        return Bank(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.parent / f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}" for _ in range(2))
    temporary.mkdir()
    try:
        _fill(encode, feature_keys, batches, count, temporary)
        if folder.exists():
            os.rename(folder, old)  # atomic: a partly removed folder never has this name
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
        features = encode(batch)
        stop = done + len(batch.labels)
        for feature_key in feature_keys:
            _append(folder / f"{feature_key}.npy", features[feature_key].float().cpu().numpy(), count, feature_key)
        labels[done:stop] = batch.labels.cpu().numpy()
        done = stop
    if done != count:
        raise ValueError(f"the loader yielded {done} images, not {count}")
    np.save(folder / f"{LABELS}.npy", labels)
    hashes = {name: digest(folder / f"{name}.npy") for name in (LABELS, *map(str, feature_keys))}
    (folder / META).write_text(json.dumps({"count": count, "sha256": hashes}))


def _append(path: Path, rows: np.ndarray, count: int, feature_key: FeatureKey) -> None:
    """Append rows (B, D) to an .npy file of `count` rows; unlike a memory map, a full disk raises an error.

    Raises:
        ValueError: a number is not finite.
        OSError: the disk is full or fails.
    """
    if not np.isfinite(rows).all():
        raise ValueError(f"features at {feature_key} are not finite")
    with open(path, "ab") as file:
        if file.tell() == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, rows.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(rows, "<f4").data)


def _is_intact(folder: Path, feature_keys: Sequence[FeatureKey], count: int) -> bool:
    try:
        meta = json.loads((folder / META).read_text())
        hashes = meta["sha256"]
        names = (LABELS, *map(str, feature_keys))
        return meta["count"] == count and all(digest(folder / f"{n}.npy") == hashes[n] for n in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # copy on write: the file is never changed


# {feature key: (B, D)} of a batch, and its labels (B,)
Encoded = tuple[Mapping[FeatureKey, Tensor], Tensor]


class Source(Protocol):
    """Source of the features of one encoder."""

    @property
    def feature_keys(self) -> Sequence[FeatureKey]:
        """Return the candidates for a protocol's selection."""

    def features(self, part: Part, feature_key: FeatureKey) -> Features:
        """Return the features of the images of a part, without augmentation."""

    def count(self, parts: Sequence[Part]) -> int:
        """Return the number of images in the parts."""

    def stream(
        self, parts: Sequence[Part], feature_keys: Sequence[FeatureKey], augment: str, batch: int, seed: int
    ) -> Iterator[Encoded]:
        """Yield endless batches of encoded augmented images of all parts; order and augmentation differ per epoch.

        The last, incomplete batch of an epoch is dropped.

        Args:
            parts: images to encode.
            feature_keys: feature keys to return.
            augment: name of the augmentation.
            batch: batch size B.
            seed: seed of order and augmentation.

        Yields:
            {feature key: (B, D)} and labels (B,).
        """

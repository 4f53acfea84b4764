"""Sets of images: in memory (small ones) or as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.rng import permutation
from ldae.data.decode import PLAIN, Bands
from ldae.data.sources import Source, in_folder


class ImageSet:
    """Labelled images, and their names for reports.

    Attributes:
        ids: (N,) positions in the full set; an augmentation depends on an image's id, not on its split.
        labels: (N,) int64; -1 for images without a class.
        names: (N,) bytes, file names relative to `root`.
        size: side that images are delivered at, in pixels.
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray, size: int, ids: np.ndarray | None = None):
        self.root, self.names, self.labels, self.size = root, names, labels, size
        self.ids = np.arange(len(labels)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, position: int) -> str:
        """File name of the image at a position of the full set (a Batch's `index`)."""
        return os.fsdecode(bytes(self.names[position]))

    def subset(self, chosen: np.ndarray) -> ImageSet:
        """The images at `chosen` positions of this set."""
        return type(self)(self.root, self.names, self.labels, self.size, self.ids[chosen])

    def order(self, seed: int, epoch: int) -> Tensor:
        """The ids in the order of an epoch: (N,) int64."""
        return torch.from_numpy(self.ids)[permutation(seed, epoch, len(self))]

    @property
    def own_labels(self) -> Tensor:
        """(N,) int64 labels in the order of this set."""
        return torch.from_numpy(self.labels[self.ids])


class FileImages(ImageSet):
    """Images that are read from their files when they are needed.

    Args: as ImageSet, and
        locate: (root, name) -> where an image's bytes lie.
        bands: how a file's numbers become colours.
    """

    def __init__(
        self,
        root: Path,
        names: np.ndarray,
        labels: np.ndarray,
        size: int,
        ids: np.ndarray | None = None,
        locate: Callable[[Path, str], Source] = in_folder,
        bands: Bands = PLAIN,
    ):
        super().__init__(root, names, labels, size, ids)
        self.locate, self.bands = locate, bands

    def subset(self, chosen: np.ndarray) -> FileImages:
        return FileImages(self.root, self.names, self.labels, self.size, self.ids[chosen], self.locate, self.bands)

    def source(self, position: int) -> Source:
        """Where the image at a position of the full set lies."""
        return self.locate(self.root, self.name(position))


class MemoryImages(ImageSet):
    """Images that are held as uint8 pixels, memory-mapped.

    Attributes:
        pixels: (M, 3, H, W) uint8 of the full set; (M, 4, H, W) with masks, 255 where the figure is.
    """

    pixels: Tensor

    def subset(self, chosen: np.ndarray) -> MemoryImages:
        part = super().subset(chosen)
        assert isinstance(part, MemoryImages)
        part.pixels = self.pixels
        return part

    @classmethod
    def of(cls, root: Path, pixels: Tensor, names: Sequence[str] | np.ndarray, labels: np.ndarray) -> MemoryImages:
        """A set of all images in `pixels`, (N, 3 or 4, H, W) uint8."""
        found = cls(root, encode_names(names), labels, pixels.shape[-1])
        found.pixels = pixels
        return found


class LatentImages(ImageSet):
    """Images of which only latents are kept, memory-mapped.

    Attributes:
        latents: (N, ...) float32, in the order of `ids`.
    """

    latents: Tensor

    @classmethod
    def of_set(cls, images: ImageSet, latents: Tensor) -> LatentImages:
        """The latents (N, ...) of all images of a set, in its order."""
        found = cls(images.root, images.names, images.labels, images.size, images.ids)
        found.latents = latents
        return found

    def rows(self, index: Tensor) -> Tensor:
        """The latents of images by their positions in the full set, (B,) -> (B, ...)."""
        return self.latents[torch.searchsorted(torch.from_numpy(self.ids), index)]


def encode_names(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """File names as one array of bytes: workers share it, a list of strings they would copy."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


@dataclass(frozen=True)
class Splits:
    """A data set, divided. Every choice is made on `holdout`; `test` is read once, at the end.

    Attributes:
        classes: class names; empty where the images have no labels.
        fingerprint: hash of the images, the labels and the division.
        bad: (name, reason) of the files that were left out.
        notes: sentences on what was not read, and on scores that would mean little.
    """

    train: ImageSet
    holdout: ImageSet
    test: ImageSet
    classes: Sequence[str]
    fingerprint: str
    bad: Sequence[tuple[str, str]] = field(default=())
    notes: Sequence[str] = field(default=())

    @property
    def labelled(self) -> bool:
        """Whether the images have classes."""
        return bool(self.classes)

    @property
    def development(self) -> ImageSet:
        """train and holdout together: what a head is fitted on after all choices are made."""
        return self.train.subset(np.arange(len(self.train))) if not len(self.holdout) else _joined(self)


def _joined(splits: Splits) -> ImageSet:
    whole = splits.train.subset(np.arange(len(splits.train)))
    whole.ids = np.sort(np.concatenate([splits.train.ids, splits.holdout.ids]))
    return whole

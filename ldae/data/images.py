"""Sets of images: memory-mapped pixels, memory-mapped latents, or files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.rng import permutation
from ldae.data.decode import DEFAULT_BANDS, Bands, Source, locate_file


class ImageSet:
    """Images with labels and names, a subset of a full set of M images.

    Attributes:
        ids: (N,) positions in the full set; augmentations depend on the id of an image, not on its split.
        labels: (M,) int64 labels of the full set; -1 for images without a class.
        names: (M,) bytes, file names of the full set relative to `root`.
        size: side of the images in batches, in pixels.
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray, size: int, ids: np.ndarray | None = None):
        self.root, self.names, self.labels, self.size = root, names, labels, size
        self.ids = np.arange(len(labels)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, position: int) -> str:
        """Return the file name of the image at a position of the full set (a Batch's `index`)."""
        return os.fsdecode(bytes(self.names[position]))

    def subset(self, chosen: np.ndarray) -> ImageSet:
        """Return the images at `chosen` positions of this set."""
        return type(self)(self.root, self.names, self.labels, self.size, self.ids[chosen])

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the ids in the order of an epoch, (N,) int64."""
        return torch.from_numpy(self.ids)[permutation(seed, epoch, len(self))]

    @property
    def own_labels(self) -> Tensor:
        """Return the labels of this set in its order, (N,) int64."""
        return torch.from_numpy(self.labels[self.ids])


class FileImages(ImageSet):
    """Images that are read from files on demand.

    Args: as ImageSet, and
        locate: (root, name) -> source of an image's bytes.
        bands: mapping from the bands of a file to RGB.
    """

    def __init__(
        self,
        root: Path,
        names: np.ndarray,
        labels: np.ndarray,
        size: int,
        ids: np.ndarray | None = None,
        locate: Callable[[Path, str], Source] = locate_file,
        bands: Bands = DEFAULT_BANDS,
    ):
        super().__init__(root, names, labels, size, ids)
        self.locate, self.bands = locate, bands

    def subset(self, chosen: np.ndarray) -> FileImages:
        """Return the images at positions `chosen`, (n,) int64."""
        return FileImages(self.root, self.names, self.labels, self.size, self.ids[chosen], self.locate, self.bands)

    def source(self, position: int) -> Source:
        """Return the source of the image at a position of the full set."""
        return self.locate(self.root, self.name(position))


class MemoryImages(ImageSet):
    """Images as uint8 pixels in memory or memory-mapped.

    Attributes:
        pixels: (M, 3, H, W) uint8 of the full set; (M, 3 + K, H, W) with masks of K classes (foreground alone:
            K = 1), 255 inside.
    """

    pixels: Tensor

    def subset(self, chosen: np.ndarray) -> MemoryImages:
        """Return the images at positions `chosen`, (n,) int64; the pixels are shared."""
        part = super().subset(chosen)
        assert isinstance(part, MemoryImages)
        part.pixels = self.pixels
        return part

    @classmethod
    def of(cls, root: Path, pixels: Tensor, names: Sequence[str] | np.ndarray, labels: np.ndarray) -> MemoryImages:
        """Return a set of all images in `pixels`, (N, 3 or 3 + K, H, W) uint8."""
        images = cls(root, encode_names(names), labels, pixels.shape[-1])
        images.pixels = pixels
        return images


class LatentImages(ImageSet):
    """Images as cached latents, memory-mapped, without pixels.

    Attributes:
        latents: (N, ...) float32, in the order of `ids`.
    """

    latents: Tensor

    @classmethod
    def of_set(cls, images: ImageSet, latents: Tensor) -> LatentImages:
        """Return a set with the latents, (N, ...), of all images of another set, in its order."""
        latent_images = cls(images.root, images.names, images.labels, images.size, images.ids)
        latent_images.latents = latents
        return latent_images

    def rows(self, index: Tensor) -> Tensor:
        """Return the latents of images by their positions in the full set, (B,) -> (B, ...)."""
        return self.latents[torch.searchsorted(torch.from_numpy(self.ids), index)]


def encode_names(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return file names as one bytes array, whose memory forked workers share (a list of strings would be copied)."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


@dataclass(frozen=True)
class Splits:
    """Data set divided into train, hold-out and test.

    Attributes:
        train: images for training.
        holdout: images for choosing hyperparameters.
        test: images for the final evaluation.
        classes: class names; empty if the images have no labels.
        fingerprint: hash of the images, the labels and the division.
        bad: (name, reason) of the unreadable files.
        notes: sentences on images that are not read and on unreliable scores.
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
        """Return whether the images have classes."""
        return bool(self.classes)

"""Data sets by name, each divided into train, hold-out and test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ldae.counter import seed_of, uniforms
from ldae.data.cache import Bad, Context, as_files, in_memory
from ldae.data.folder import Listing, list_classes, list_images
from ldae.data.images import ImageSet, MemoryImages, Splits
from ldae.errors import ConfigError, DataError, nearest
from ldae.files import json_hash
from ldae.parts import Count, Fraction, Natural

SMALL = 2 << 30  # bytes of pixels that are held in memory by default


@dataclass(frozen=True)
class Division:
    """How a data set is divided.

    Attributes:
        holdout: share of train that is set aside for every choice.
        test: share of all images for the test split, where the data has none of its own.
        split_seed: seed of the division; not the run's, so that runs compare.
    """

    holdout: Fraction = 0.1
    test: Fraction = 0.2
    split_seed: Natural = 0


class Dataset(ABC):
    """Where images come from.

    Args:
        size: side of the images in pixels.
        division: into train, hold-out and test.
    """

    def __init__(self, size: Count, division: Division):
        self.size, self.division = size, division

    @property
    def name(self) -> str:
        """What result lines call it."""
        return type(self).__name__

    @abstractmethod
    def open(self, context: Context) -> Splits:
        """Reads or finds the images and divides them.

        Raises:
            DataError: they are missing, or too many are unreadable.
        """

    def _divided(self, whole: ImageSet, fraction: float, salt: int) -> tuple[ImageSet, ImageSet]:
        """(the rest, a `fraction` of the set), drawn by seed, every class in proportion."""
        order = _proportional_order(whole.labels[whole.ids], seed_of(self.division.split_seed, salt))
        chosen = np.sort(order[: round(fraction * len(whole))])
        rest = np.setdiff1d(np.arange(len(whole)), chosen)
        return whole.subset(rest), whole.subset(chosen)

    def _splits(self, train: ImageSet, test: ImageSet | None, classes: list[str], marks: list[str], bad: Bad) -> Splits:
        if test is None:
            train, test = self._divided(train, self.division.test, salt=1)
        train, holdout = self._divided(train, self.division.holdout, salt=2)
        if not len(train):
            raise DataError(f"data: no image is left to train on with {self.division}")
        fingerprint = json_hash([marks, self.size, astuple(self.division)])
        return Splits(train, holdout, test, classes, fingerprint, tuple(bad))


def _proportional_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions in an order each of whose beginnings holds every class in proportion, as nearly as whole numbers go."""
    u = uniforms(seed, 0, torch.arange(len(labels)), 2).double().numpy()
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = rows[np.argsort(u[rows, 0], kind="stable")]
        place[shuffled] = (np.arange(len(rows)) + u[shuffled, 1]) / len(rows)
    return np.argsort(place, kind="stable")


class Digits(Dataset):
    """scikit-learn's 1,797 grey 8 x 8 digits, as RGB: needs no file and no network.

    Args: as Dataset; `size` is 8.
    """

    def open(self, context: Context) -> Splits:
        from sklearn.datasets import load_digits

        if self.size != 8:
            raise ConfigError("size", self.size, "must be 8: the digits have 8 x 8 pixels")
        found = load_digits()
        grey = torch.from_numpy(np.round(found.images * 255 / 16).astype(np.uint8))  # (N, 8, 8), 0..16 there
        pixels = grey[:, None].expand(-1, 3, -1, -1).contiguous()
        names = [f"digit-{i:04d}" for i in range(len(pixels))]
        whole = MemoryImages.of(Path("digits"), pixels, names, found.target.astype(np.int64))
        return self._splits(whole, None, [str(c) for c in range(10)], [json_hash(pixels.flatten().tolist())], [])


def existing_root(root: str | None, layout: str) -> Path:
    """data.root as a path.

    Args:
        layout: what it should hold, for the error.

    Raises:
        ConfigError: it is not set.
        DataError: it is no folder.
    """
    if not root:
        raise ConfigError("root", root, f"is not set; give data.root=FOLDER with {layout}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root={root} is {'a file' if folder.exists() else 'missing'}; a folder is needed")
    return folder


class ImageFolder(Dataset):
    """Images in class folders: root/train/CLASS/NAME and root/{test,val}/CLASS/NAME, or root/CLASS/NAME alone.

    Args: as Dataset, and
        root: the folder.
        store: `memory` decodes all images once to size x size squares, `stream` reads files as they come;
            `auto` takes memory up to 2 GiB of images of at most 96 pixels.
        only: names of the classes that are kept; all if null.
    """

    def __init__(
        self,
        size: Count,
        division: Division,
        root: str | None = None,
        store: Literal["auto", "memory", "stream"] = "auto",
        only: list[str] | None = None,
    ):
        super().__init__(size, division)
        self.root, self.store, self.only = root, store, only

    def open(self, context: Context) -> Splits:
        root = existing_root(self.root, "train/CLASS/NAME images")
        if not (root / "train").is_dir():
            listing = list_images(root, self._chosen(list_classes(root), root))
            train, bad, mark = self._read(listing, context)
            return self._splits(train, None, list(listing.classes), [mark], bad)
        classes = self._chosen(list_classes(root / "train"), root / "train")
        train, bad, mark = self._read(list_images(root / "train", classes), context)
        held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if held is None:
            return self._splits(train, None, classes, [mark], bad)
        if extra := sorted(set(list_classes(held)) - set(list_classes(root / "train"))):
            raise DataError(f"{held} has classes that {root / 'train'} lacks: {', '.join(extra[:5])}")
        test, test_bad, test_mark = self._read(list_images(held, classes), context)
        return self._splits(train, test, classes, [mark, test_mark], bad + test_bad)

    def _chosen(self, classes: Sequence[str], place: Path) -> list[str]:
        """Those of the classes found in a place that are kept, in their order."""
        if self.only is None:
            return list(classes)
        for name in self.only or [""]:
            if name not in classes:
                raise ConfigError("only", name, f"is no class of {place}{nearest(name, classes)}")
        return [name for name in classes if name in self.only]

    def _read(self, listing: Listing, context: Context) -> tuple[ImageSet, Bad, str]:
        small = self.size <= 96 and len(listing.files) * 3 * self.size**2 <= SMALL
        if self.store == "memory" or (self.store == "auto" and small):
            return in_memory(listing, self.size, context)
        return as_files(listing, self.size, context)


class CIFAR(ImageFolder):
    """CIFAR-10 or CIFAR-100 as an ImageFolder tree, or downloaded by torchvision if that is asked for.

    Args: as ImageFolder, and
        classes: 10 or 100.
        download: fetch the data set into `root` if it is not there.
    """

    def __init__(
        self,
        size: Count,
        division: Division,
        classes: Literal[10, 100],
        root: str | None = None,
        download: bool = False,
        store: Literal["auto", "memory", "stream"] = "auto",
        only: list[str] | None = None,
    ):
        super().__init__(size, division, root, store, only)
        self.classes, self.download = classes, download

    @property
    def name(self) -> str:
        return f"CIFAR-{self.classes}"

    def open(self, context: Context) -> Splits:
        if self.download:
            return self._downloaded(context)
        root = existing_root(self.root, "train/CLASS/NAME images")
        if not (root / "train").is_dir():
            raise DataError(
                f"data.root={self.root} has no folder train/; give a CIFAR-{self.classes} tree "
                "(train/CLASS/NAME.png, test/CLASS/NAME.png) or data.download=true"
            )
        if (n := len(list_classes(root / "train"))) != self.classes:
            raise DataError(f"data.root={self.root} has {n} classes in train/, CIFAR-{self.classes} has {self.classes}")
        return super().open(context)

    def _downloaded(self, context: Context) -> Splits:
        from torchvision import datasets

        kind = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
        root = self.root or str(context.cache / "downloads")
        halves, marks = [], []
        for name, train in (("train", True), ("test", False)):
            try:
                found = kind(root, train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"data.download=true: CIFAR-{self.classes} cannot be fetched ({error})") from None
            kept = [found.classes.index(c) for c in self._chosen(found.classes, Path(root))]
            rows = np.flatnonzero(np.isin(found.targets, kept))
            labels = np.searchsorted(kept, np.array(found.targets, dtype=np.int64)[rows])
            pixels = torch.from_numpy(found.data[rows].transpose(0, 3, 1, 2).copy())
            names = [f"{name}-{i:05d}" for i in rows]
            halves.append(MemoryImages.of(Path(root), pixels, names, labels))
            marks.append(json_hash([pixels.sum((1, 2, 3)).tolist(), labels.tolist()]))
        if self.size != 32:
            raise ConfigError("size", self.size, "must be 32 with data.download=true; use an image folder to resize")
        return self._splits(halves[0], halves[1], self._chosen(found.classes, Path(root)), marks, [])

"""Data sets by name, each divided into train, hold-out and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError, did_you_mean
from ldae.core.files import json_hash
from ldae.core.types import Count
from ldae.data.base import Dataset, Division
from ldae.data.cache import Bad, Context, as_files, in_memory
from ldae.data.folder import Listing, list_classes, list_flat, list_images
from ldae.data.images import ImageSet, MemoryImages, Splits
from ldae.data.layout import NONE, SplitNames, is_usual, some
from ldae.data.walk import MOST_COUNTED, Contents, contents, count_images, unreadable

SMALL = 2 << 30  # bytes of pixels that are held in memory by default


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
        StorageError: reading failed.
    """
    if not root:
        raise ConfigError("root", root, f"is not set; give data.root=FOLDER with {layout}")
    folder = Path(root).expanduser()
    try:
        if not folder.is_dir():
            raise DataError(f"data.root={root} is {'a file' if folder.exists() else 'missing'}; a folder is needed")
    except OSError as error:
        raise unreadable(f"data.root={root} cannot be read", error) from None
    return folder


def unread_folders(root: Path, there: Contents, names: Mapping[str, str]) -> list[str]:
    """Return the folders of `root` that hold images and are no split, with how many images.

    Args:
        there: what is directly in `root`.
        names: folders of the splits.
    """
    counts = {name: count_images(root / name) for name in there.folders if name not in names.values()}
    return [f"{name}/ ({'at least ' * (n >= MOST_COUNTED)}{n:,} images)" for name, n in counts.items() if n]


def unread_notes(root: Path, there: Contents, unread: Sequence[str]) -> list[str]:
    """Return what to say of images that lie beside the splits.

    Args:
        there: what is directly in `root`.
        unread: what `unread_folders` returns.
    """
    notes = [f"{root}: folders that are not read: {some(unread)}"] if unread else []
    if there.images:
        notes.append(f"{root}: {len(there.images)} images lie in no split and are not read: {some(there.images)}")
    return notes


class ImageFolder(Dataset):
    """Images in class folders, or without classes.

    root/train/CLASS/NAME with root/val/CLASS/NAME, root/test/CLASS/NAME or both (see `USUAL` for the names, in any
    letter case; val is the hold-out where there is a test split too, and else the test split), or root/CLASS/NAME
    alone. Below CLASS images may lie at any depth. Where no folder holds images, those directly in root, or in
    root/train, are read without classes.

    Args: as Dataset, and
        root: the folder.
        store: `memory` decodes all images once to size x size squares, `stream` reads files as they come;
            `auto` takes memory up to 2 GiB of images of at most 96 pixels.
        only: names of the classes that are kept; all if null.
        labels: `none` to read every image below root, or below its splits, without classes.
        train_split, holdout_split, test_split: name of the folder of each split; the usual ones if null; `none` for
            no such split (for train: root itself holds the classes).
    """

    label_hint = "give each class a folder of its own, CLASS/NAME"

    def __init__(
        self,
        size: Count,
        division: Division,
        root: str | None = None,
        store: Literal["auto", "memory", "stream"] = "auto",
        only: list[str] | None = None,
        labels: Literal["none"] | None = None,
        train_split: str | None = None,
        holdout_split: str | None = None,
        test_split: str | None = None,
    ):
        super().__init__(size, division)
        self.root, self.store, self.only, self.labels = root, store, only, labels
        self.split_names = SplitNames(train_split, holdout_split, test_split)
        if only is not None and labels == NONE:
            raise ConfigError("only", only, "names classes, and data.labels=none reads none; leave one of them out")

    def open(self, context: Context) -> Splits:
        root = existing_root(self.root, "images in it: NAME, CLASS/NAME or train/CLASS/NAME")
        there = contents(root)
        names = self.split_names.among(there.folders, str(root))
        read = partial(self._read, context=context)
        if "train" not in names:
            notes = self._undivided_notes(root, there, names)
            return self._opened({"train": self._listed(root, None, context)}, read, {"train": str(root)}, notes)
        train = self._listed(root / names["train"], None, context)
        unread = unread_folders(root, there, names)
        self._check_train(train, unread, names["train"])
        listings = {key: self._listed(root / name, train, context) for key, name in names.items() if key != "train"}
        listings = {"train": train, **listings}
        if "holdout" in names and listings["holdout"].labelled == train.labelled:  # one set: names that say which part
            listings |= {key: listings[key].below(root) for key in ("train", "holdout")}
        called = {key: f"{name}/" for key, name in names.items()}
        return self._opened(listings, read, called, unread_notes(root, there, unread))

    def _listed(self, folder: Path, train: Listing | None, context: Context) -> Listing:
        """Return the images of a split, which has the classes of train."""
        if self.labels == NONE or (train is not None and not train.labelled):
            return list_flat(folder, context.poll)
        if train is None:
            return list_images(folder, self._chosen(list_classes(folder), folder), context.poll)
        if extra := sorted(set(list_classes(folder)) - set(list_classes(train.root))):
            raise DataError(f"{folder} has classes that {train.root} lacks: {some(extra)}")
        return list_images(folder, train.classes, context.poll)

    def _undivided_notes(self, root: Path, there: Contents, names: Mapping[str, str]) -> list[str]:
        """Return what to say of a root without a training folder whose folders are called like splits.

        Raises:
            DataError: a split is named, or all folders are called like splits.
        """
        named = [name for key, name in names.items() if getattr(self.split_names, key) is not None]
        called = [name for name in there.folders if is_usual(name) and self.split_names.train is None]
        if named or (called and (len(called) == len(there.folders) or len(names) > 1)):
            raise DataError(
                f"data.root={root} has {some(named or called)} and no train/; name the training split by "
                f"data.train_split=FOLDER{'' if named else ', or give data.train_split=none if these are classes'}"
            )
        return [f"{root}: {some(called)} is read as a class, for there is no train/ beside it"] if called else []

    def _check_train(self, train: Listing, unread: Sequence[str], name: str) -> None:
        """Refuse a train/ that may be a class.

        Raises:
            DataError: it holds images directly, as the folders beside it do.
        """
        if unread and not train.labelled and self.split_names.train is None and self.labels != NONE:
            raise DataError(
                f"{train.root} holds images directly, beside {some(unread)}: if it is a class, give "
                f"data.train_split=none; if it is the training split, data.train_split={name}"
            )

    def _chosen(self, classes: Sequence[str], place: Path) -> list[str]:
        """Return those of the classes of a place that are kept, in their order."""
        if self.only is None:
            return list(classes)
        for name in self.only or [""]:
            if name not in classes:
                raise ConfigError("only", name, f"is no class of {place}{did_you_mean(name, classes)}")
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
        train = self.split_names.among(list_classes(root), str(root)).get("train")
        if train is None:
            raise DataError(
                f"data.root={self.root} has no folder train/; give a CIFAR-{self.classes} tree "
                "(train/CLASS/NAME.png, test/CLASS/NAME.png) or data.download=true"
            )
        if (n := len(list_classes(root / train))) != self.classes:
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

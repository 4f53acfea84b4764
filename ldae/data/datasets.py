"""Data sets in folders of images, CIFAR, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError, abbreviate, did_you_mean
from ldae.core.files import json_hash
from ldae.core.types import Count
from ldae.data.base import Dataset, Division
from ldae.data.cache import Bad, Context, load_images, open_files
from ldae.data.folder import Listing, list_classes, list_flat, list_images
from ldae.data.images import ImageSet, MemoryImages, Splits
from ldae.data.scan import MAX_COUNTED, Contents, count_images, list_folder, wrap_data_error
from ldae.data.split_names import NONE, SplitNames, is_usual_name

MEMORY_LIMIT = 2 << 30  # bytes of pixels up to which store=auto holds a set in memory


class Digits(Dataset):
    """scikit-learn's 1,797 grey 8 x 8 digits, as RGB; needs no download.

    Args: as Dataset; `size` is 8.
    """

    def open(self, context: Context) -> Splits:
        """Load the digits from scikit-learn and divide them."""
        from sklearn.datasets import load_digits

        if self.size != 8:
            raise ConfigError("size", self.size, "must be 8: the digits have 8 x 8 pixels")
        digits = load_digits()  # values 0 to 16
        grey = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8))  # (N, 8, 8)
        pixels = grey[:, None].expand(-1, 3, -1, -1).contiguous()
        names = [f"digit-{i:04d}" for i in range(len(pixels))]
        whole = MemoryImages.of(Path("digits"), pixels, names, digits.target.astype(np.int64))
        return self._make_splits(whole, None, [str(c) for c in range(10)], [json_hash(pixels.flatten().tolist())], [])


def resolve_root(root: str | None, layout: str) -> Path:
    """Return `data.root` as a path.

    Args:
        root: value of the key.
        layout: expected content of the folder, for the message.

    Raises:
        ConfigError: the key is not set.
        DataError: the path is not a folder.
        StorageError: reading failed.
    """
    if not root:
        raise ConfigError("root", root, f"is not set; give data.root=FOLDER with {layout}")
    folder = Path(root).expanduser()
    try:
        if not folder.is_dir():
            raise DataError(f"data.root={root} is {'a file' if folder.exists() else 'missing'}; a folder is needed")
    except OSError as error:
        raise wrap_data_error(f"data.root={root} cannot be read", error) from None
    return folder


def find_unread_folders(root: Path, contents: Contents, names: Mapping[str, str]) -> list[str]:
    """Return the folders of `root` that have images and are not a split, with their numbers of images.

    Args:
        root: root of the data set.
        contents: contents of `root`.
        names: split -> folder.
    """
    counts = {name: count_images(root / name) for name in contents.folders if name not in names.values()}
    return [f"{name}/ ({'at least ' * (n >= MAX_COUNTED)}{n:,} images)" for name, n in counts.items() if n]


def describe_unread_images(root: Path, contents: Contents, unread: Sequence[str]) -> list[str]:
    """Return notes on images outside of the splits.

    Args:
        root: root of the data set.
        contents: contents of `root`.
        unread: result of `find_unread_folders`.
    """
    notes = [f"{root}: folders that are not read: {abbreviate(unread)}"] if unread else []
    if images := contents.images:
        notes.append(f"{root}: {len(images)} images lie in no split and are not read: {abbreviate(images)}")
    return notes


class ImageFolder(Dataset):
    """Images in class folders, or without classes.

    The layout is root/CLASS/NAME, or root/train/CLASS/NAME with root/val/CLASS/NAME, root/test/CLASS/NAME or both
    (names in `USUAL_NAMES`, in any letter case; without a test split, val is the test split, else the hold-out).
    Images may lie at any depth below CLASS. If no folder has images, those directly in root, or in root/train, are
    read without classes.

    Args: as Dataset, and
        root: folder of the data set.
        store: `memory` decodes all images once to size x size centre crops, `stream` reads files on demand;
            `auto` is `memory` for up to 2 GiB of images of at most 96 pixels, else `stream`.
        only: names of the classes to keep; all if null.
        labels: `none` to read every image below root, or below its splits, without classes.
        train_split, holdout_split, test_split: name of the folder of each split; the usual ones if null; `none` for
            no such split (for train: root itself contains the classes).
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
        """List and read the images of the folder, and divide them."""
        root = resolve_root(self.root, "images in it: NAME, CLASS/NAME or train/CLASS/NAME")
        contents = list_folder(root)
        names = self.split_names.resolve(contents.folders, str(root))
        read = partial(self._read, context=context)
        if "train" not in names:
            notes = self._undivided_notes(root, contents, names)
            listing = self._list_split(root, None, context)
            return self._open_listings({"train": listing}, read, {"train": str(root)}, notes)
        train = self._list_split(root / names["train"], None, context)
        unread = find_unread_folders(root, contents, names)
        self._check_train(train, unread, names["train"])
        listings = {key: self._list_split(root / name, train, context) for key, name in names.items() if key != "train"}
        listings = {"train": train, **listings}
        if "holdout" in names and listings["holdout"].labelled == train.labelled:  # read as one set: unique names
            listings |= {key: listings[key].relative_to(root) for key in ("train", "holdout")}
        titles = {key: f"{name}/" for key, name in names.items()}
        return self._open_listings(listings, read, titles, describe_unread_images(root, contents, unread))

    def _list_split(self, folder: Path, train: Listing | None, context: Context) -> Listing:
        """Return the images of a split, with the classes of train."""
        if self.labels == NONE or (train is not None and not train.labelled):
            return list_flat(folder, context.poll)
        if train is None:
            return list_images(folder, self._select_classes(list_classes(folder), folder), context.poll)
        if extra := sorted(set(list_classes(folder)) - set(list_classes(train.root))):
            raise DataError(f"{folder} has classes that {train.root} lacks: {abbreviate(extra)}")
        return list_images(folder, train.classes, context.poll)

    def _undivided_notes(self, root: Path, contents: Contents, names: Mapping[str, str]) -> list[str]:
        """Return a note on folders with the names of splits in a root without a training folder.

        Raises:
            DataError: a key names a split, or all folders have the names of splits.
        """
        named = [name for key, name in names.items() if getattr(self.split_names, key) is not None]
        like_splits = [name for name in contents.folders if is_usual_name(name) and self.split_names.train is None]
        if named or (like_splits and (len(like_splits) == len(contents.folders) or len(names) > 1)):
            raise DataError(
                f"data.root={root} has {abbreviate(named or like_splits)} and no train/; name the training split by "
                f"data.train_split=FOLDER{'' if named else ', or give data.train_split=none if these are classes'}"
            )
        if not like_splits:
            return []
        return [f"{root}: {abbreviate(like_splits)} is read as a class, since there is no train/ beside it"]

    def _check_train(self, train: Listing, unread: Sequence[str], name: str) -> None:
        """Refuse a folder train/ that may be a class.

        Raises:
            DataError: it has images directly, as the folders beside it do.
        """
        if unread and not train.labelled and self.split_names.train is None and self.labels != NONE:
            raise DataError(
                f"{train.root} holds images directly, beside {abbreviate(unread)}: if it is a class, give "
                f"data.train_split=none; if it is the training split, data.train_split={name}"
            )

    def _select_classes(self, classes: Sequence[str], folder: Path) -> list[str]:
        """Return the classes of a folder that `only` keeps, in their order."""
        if self.only is None:
            return list(classes)
        for name in self.only or [""]:
            if name not in classes:
                raise ConfigError("only", name, f"is no class of {folder}{did_you_mean(name, classes)}")
        return [name for name in classes if name in self.only]

    def _read(self, listing: Listing, context: Context) -> tuple[ImageSet, Bad, str]:
        is_small = self.size <= 96 and len(listing.files) * 3 * self.size**2 <= MEMORY_LIMIT
        if self.store == "memory" or (self.store == "auto" and is_small):
            return load_images(listing, self.size, context)
        return open_files(listing, self.size, context)


class CIFAR(ImageFolder):
    """CIFAR-10 or CIFAR-100 as an ImageFolder tree, or downloaded by torchvision.

    Args: as ImageFolder, and
        classes: 10 or 100.
        download: whether to download the data set into `root` if it is absent.
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
        """Return `CIFAR-10` or `CIFAR-100`."""
        return f"CIFAR-{self.classes}"

    def open(self, context: Context) -> Splits:
        """Read the images of the folder, or download them, and divide them."""
        if self.download:
            return self._downloaded(context)
        root = resolve_root(self.root, "train/CLASS/NAME images")
        train = self.split_names.resolve(list_classes(root), str(root)).get("train")
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

        cifar = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
        root = self.root or str(context.cache / "downloads")
        splits, digests = [], []
        for name in ("train", "test"):
            try:
                source = cifar(root, train=name == "train", download=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"data.download=true: CIFAR-{self.classes} cannot be fetched ({error})") from None
            kept = [source.classes.index(c) for c in self._select_classes(source.classes, Path(root))]
            rows = np.flatnonzero(np.isin(source.targets, kept))
            labels = np.searchsorted(kept, np.array(source.targets, dtype=np.int64)[rows])
            pixels = torch.from_numpy(source.data[rows].transpose(0, 3, 1, 2).copy())  # (N, 3, 32, 32)
            names = [f"{name}-{i:05d}" for i in rows]
            splits.append(MemoryImages.of(Path(root), pixels, names, labels))
            digests.append(json_hash([pixels.sum((1, 2, 3)).tolist(), labels.tolist()]))
        if self.size != 32:
            raise ConfigError("size", self.size, "must be 32 with data.download=true; use an image folder to resize")
        train_images, test_images = splits
        return self._make_splits(
            train_images, test_images, self._select_classes(source.classes, Path(root)), digests, []
        )

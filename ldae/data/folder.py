"""Listings of image files in class folders, with a hash that changes when a file does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldae.core.errors import DataError, abbreviate
from ldae.core.files import json_hash
from ldae.data.decode import SUFFIXES, Source, locate_file
from ldae.data.scan import Files, FolderScan, list_folder

UNLABELLED = -1  # the label of an image without a class
MAX_CLASSES = 100_000  # or the number of images, if larger; a higher class index counts as damage


@dataclass(frozen=True)
class Listing:
    """Image files of one split.

    Attributes:
        root: folder that the names are relative to.
        files: names, sorted.
        sizes: bytes of each file.
        labels: class index of each file; UNLABELLED if there are no classes.
        classes: class names, sorted; empty if the images have no classes.
        stamp: hash of names, sizes and modification times.
        locate: (root, name) -> source of an image's bytes.
        stream: function that yields the bytes of all images in order, for data without random access.
        inodes: (N, 2) int64 device and inode of each file, or None.
        notes: sentences on files that are not read.
        masks: path of each image's mask, or empty.
    """

    root: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    stamp: str
    locate: Callable[[Path, str], Source] = locate_file
    stream: Callable[[], Iterable[bytes]] | None = None
    inodes: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())
    masks: tuple[Path, ...] = field(default=())

    @property
    def sources(self) -> Iterable[Source]:
        """Return the source of each image's bytes."""
        return self.stream() if self.stream else (self.locate(self.root, name) for name in self.files)

    @property
    def labelled(self) -> bool:
        """Return whether the images have classes."""
        return bool(self.classes)

    def without_labels(self) -> Listing:
        """Return a listing of the same images without classes."""
        return replace(self, labels=(UNLABELLED,) * len(self.files), classes=())

    def relative_to(self, root: Path) -> Listing:
        """Return a listing of the same files with names relative to a parent folder."""
        prefix = os.path.relpath(self.root, root)
        return replace(self, root=root, files=tuple(os.path.join(prefix, name) for name in self.files))


def concatenate(first: Listing, second: Listing) -> Listing:
    """Return a listing of the images of `first` and then of `second`, which have the same root and classes."""
    inodes = None
    if first.inodes is not None and second.inodes is not None:
        inodes = np.concatenate([first.inodes, second.inodes])
    return replace(
        first,
        files=first.files + second.files,
        sizes=first.sizes + second.sizes,
        labels=first.labels + second.labels,
        stamp=json_hash([first.stamp, second.stamp]),
        inodes=inodes,
        notes=first.notes + second.notes,
        masks=first.masks + second.masks,
    )


def find_linked_images(first: Listing, second: Listing) -> list[tuple[str, str]]:
    """Return the (name, name) of files that are in both listings through symbolic or hard links."""
    if first.inodes is None or second.inodes is None:
        return []
    inodes = np.intersect1d(first.inodes[:, 1], second.inodes[:, 1])
    rows = [np.flatnonzero(np.isin(x.inodes[:, 1], inodes[inodes != 0])) for x in (first, second)]  # type: ignore[index]
    names = {tuple(first.inodes[i].tolist()): first.files[i] for i in rows[0]}
    return [(names[key], second.files[j]) for j in rows[1] if (key := tuple(second.inodes[j].tolist())) in names]


def list_classes(root: Path) -> list[str]:
    """Return the names of the class folders directly below `root`, sorted.

    Raises:
        DataError, StorageError: `root` cannot be listed.
    """
    return list_folder(root).folders


def list_images(root: Path, classes: Sequence[str] | None = None, poll: Callable[[], None] = lambda: None) -> Listing:
    """List every image file below root/CLASS/, or, if there is none, below `root`, without classes.

    A file with several symbolic links counts once (see `FolderScan`).

    Args:
        root: folder of the class folders.
        classes: names of the class folders to read; all if None.
        poll: function called for each folder; raises when the run is to stop.

    Raises:
        DataError: `root` is not a folder, has no images, or has more images outside of its class folders than in them.
        StorageError: reading failed.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is {'a file' if root.exists() else 'missing'}; a folder is needed")
    contents = list_folder(root)
    scan = FolderScan(root, contents.folders, poll)
    chosen = contents.folders if classes is None else classes
    of_class = {name: scan.images(name) if name in contents.folders else [] for name in chosen}
    count, loose = sum(map(len, of_class.values())), contents.images
    if not count and not set(contents.folders) - set(chosen):
        return list_flat(root, poll)
    if not count:
        raise DataError(f"{root} has no images in the class folders {abbreviate(list(chosen))}")
    if len(loose) >= count:
        raise DataError(
            f"{root} holds {len(loose)} images directly and {count} in its folders ({abbreviate(chosen)}): give each "
            f"class a folder of its own, or give data.labels=none to read all of them without classes"
        )
    notes = list(_folder_notes(root, of_class, loose, contents.broken_links))
    files = [(name, label, info) for label, c in enumerate(chosen) for name, info in of_class[c]]
    return _listing(root, files, chosen, [*notes, *scan.notes()])


def list_flat(root: Path, poll: Callable[[], None] = lambda: None) -> Listing:
    """List every image file below `root` at any depth, without classes.

    Args, Raises: as list_images.
    """
    scan = FolderScan(root, [""], poll)
    files = [(name, UNLABELLED, info) for name, info in scan.images("")]
    if not files:
        others = f"; it has {abbreviate(list(scan.suffixes))} files" if scan.suffixes else ""
        hint = next((hint for suffix, hint in OTHER_DATA.items() if suffix in scan.suffixes), "")
        raise DataError(f"data.root={root} holds no images ({', '.join(sorted(SUFFIXES))}){others}{hint}")
    return _listing(root, files, [], list(scan.notes()))


# suffix -> advice on the data set class for such files
OTHER_DATA = {".tar": ", which data=webdataset reads", ".parquet": ", which data=huggingface reads"}


def _folder_notes(root: Path, of_class: dict[str, Files], loose: list[str], broken_links: list[str]) -> Iterator[str]:
    if empty := [name for name, files in of_class.items() if not files]:
        yield f"{root}: {len(empty)} class folders hold no images: {abbreviate(empty)}"
    if loose:
        yield f"{root}: {len(loose)} images lie in no class folder and are not read: {abbreviate(loose)}"
    if broken_links:
        yield f"{root}: {len(broken_links)} symbolic links have no target: {abbreviate(broken_links)}"


def _listing(
    root: Path, files: list[tuple[str, int, os.stat_result]], classes: Sequence[str], notes: Sequence[str]
) -> Listing:
    """Return the listing of files given as (name, label, stat)."""
    inodes = np.array([(info.st_dev, info.st_ino) for _, _, info in files], np.uint64).reshape(-1, 2)
    return Listing(
        root,
        tuple(name for name, _, _ in files),
        tuple(info.st_size for _, _, info in files),
        tuple(label for _, label, _ in files),
        tuple(classes),
        hash_file_stats((name, info) for name, _, info in files),
        inodes=inodes.view(np.int64),  # an unsigned 64-bit inode wraps
        notes=tuple(notes),
    )


def list_image_mask_pairs(root: Path, poll: Callable[[], None] = lambda: None) -> Listing:
    """List every image file below root/images/ with the file of the same stem below root/masks/.

    The images have one class, "figure"; the stamp depends on the masks too.

    Raises:
        DataError: a folder is missing or empty, an image has no mask, or several masks have one stem.
        StorageError: reading failed.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DataError(f"{root} has no folder {name}/; images/NAME.jpg and masks/NAME.png are needed there")
    scans = {name: FolderScan(root, [name], poll) for name in ("images", "masks")}
    images, mask_files = (scan.images(name) for name, scan in scans.items())
    masks = {_stem(name): (name, info) for name, info in mask_files}
    if not images:
        raise DataError(f"{root / 'images'} holds no images")
    if missing := [name for name, _ in images if _stem(name) not in masks]:
        raise DataError(
            f"{root / missing[0]} has no mask; {root / 'masks' / _stem(missing[0])}.png is needed "
            f"({len(missing)} of {len(images)} images have none)"
        )
    if doubles := [name for name, _ in mask_files if masks[_stem(name)][0] != name]:
        raise DataError(f"{root / doubles[0]} and {root / masks[_stem(doubles[0])][0]} are masks of one name; keep one")
    notes = [note for scan in scans.values() for note in scan.notes()]
    stems = {_stem(name) for name, _ in images}
    if unused := [name for name, _ in mask_files if _stem(name) not in stems]:
        notes.append(f"{root}: {len(unused)} masks have no image and are not read: {abbreviate(unused)}")
    pairs = [masks[_stem(name)] for name, _ in images]
    listing = _listing(root, [(name, 0, info) for name, info in images], ["figure"], notes)
    return replace(listing, stamp=hash_file_stats([*images, *pairs]), masks=tuple(root / name for name, _ in pairs))


def _stem(name: str) -> str:
    """Return a name without its first folder and its suffix."""
    return os.path.splitext(name.partition(os.sep)[2])[0]


def count_classes(labels: Sequence[int], names: Sequence[str], source: str) -> int:
    """Return the number of classes of numeric labels: the largest label plus one; 0 without labels.

    Args:
        labels: label of each image; UNLABELLED for none.
        names: names of the images, for messages.
        source: their source, for messages.

    Raises:
        DataError: only some images have a label, or a label is too large (see MAX_CLASSES).
    """
    without = [name for name, label in zip(names, labels, strict=True) if label == UNLABELLED]
    if len(without) == len(labels):
        return 0
    if without:
        raise DataError(
            f"{source}: {len(without)} of {len(labels)} images have no class, the first: {without[0]}; "
            f"give each of them one, or none at all"
        )
    if (last := max(labels)) >= max(MAX_CLASSES, len(labels)):
        name = names[labels.index(last)]
        raise DataError(
            f"{source}: {name} has class {last}, and there are {len(labels)} images; a class is a number "
            f"below {MAX_CLASSES}, or below the number of images where that is larger"
        )
    return last + 1


def hash_file_stats(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Return the hex SHA-256 of the names, sizes and modification times of files."""
    digest = hashlib.sha256()
    for name, info in files:
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n".encode("utf8", "surrogateescape"))
    return digest.hexdigest()

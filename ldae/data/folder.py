"""Finding image files in class folders, and knowing them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldae.core.errors import DataError
from ldae.core.files import json_hash
from ldae.data.decode import SUFFIXES
from ldae.data.layout import some
from ldae.data.sources import Source, in_folder
from ldae.data.walk import Found, Walk, contents

UNLABELLED = -1  # the label of an image without a class
MOST_CLASSES = 100_000  # where there are fewer images; a larger number is taken for damage


@dataclass(frozen=True)
class Listing:
    """Image files of one split.

    Attributes:
        root: the folder that the files' names are relative to.
        files: names, sorted.
        sizes: bytes of each file.
        labels: class index of each file; UNLABELLED where there are no classes.
        classes: class names, sorted; empty where images have no classes.
        stamp: hash of names, sizes and modification times: changes when a file does.
        locate: (root, name) -> where an image's bytes lie.
        stream: gives the bytes of all images in order, where they can only be read so.
        inodes: (N, 2) int64 device and inode of each file, where each image is a file.
        notes: sentences on what was passed over.
        masks: file of each image's mask, where there are masks.
    """

    root: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    stamp: str
    locate: Callable[[Path, str], Source] = in_folder
    stream: Callable[[], Iterable[bytes]] | None = None
    inodes: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())
    masks: tuple[Path, ...] = field(default=())

    @property
    def sources(self) -> Iterable[Source]:
        """Where the bytes of each image lie."""
        return self.stream() if self.stream else (self.locate(self.root, name) for name in self.files)

    @property
    def labelled(self) -> bool:
        """Whether images have classes."""
        return bool(self.classes)

    def without_labels(self) -> Listing:
        """Return the same images, without their classes."""
        return replace(self, labels=(UNLABELLED,) * len(self.files), classes=())

    def below(self, root: Path) -> Listing:
        """Return the same files, their names relative to a folder further up."""
        prefix = os.path.relpath(self.root, root)
        return replace(self, root=root, files=tuple(os.path.join(prefix, name) for name in self.files))


def joined(first: Listing, second: Listing) -> Listing:
    """Return the images of two listings of one root and one list of classes, one after the other."""
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


def shared(first: Listing, second: Listing) -> list[tuple[str, str]]:
    """Return the (name, name) of files that are in both listings, by symbolic or hard links."""
    if first.inodes is None or second.inodes is None:
        return []
    inodes = np.intersect1d(first.inodes[:, 1], second.inodes[:, 1])
    rows = [np.flatnonzero(np.isin(x.inodes[:, 1], inodes[inodes != 0])) for x in (first, second)]  # type: ignore[index]
    known = {tuple(first.inodes[i].tolist()): first.files[i] for i in rows[0]}
    return [(known[key], second.files[j]) for j in rows[1] if (key := tuple(second.inodes[j].tolist())) in known]


def list_classes(root: Path) -> list[str]:
    """Return the names of the class folders directly below `root`, sorted.

    Raises:
        DataError, StorageError: `root` cannot be listed.
    """
    return contents(root).folders


def list_images(root: Path, classes: Sequence[str] | None = None, poll: Callable[[], None] = lambda: None) -> Listing:
    """Return every image file below root/CLASS/, or, where there is none, below `root`, without classes.

    A file reached by several symbolic links counts once (see `Walk`).

    Args:
        classes: names of the class folders that are read; all if None.
        poll: called now and then; raises when the run is to stop.

    Raises:
        DataError: `root` is no folder, holds no images, or more of them outside of its class folders than in them.
        StorageError: reading failed.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is {'a file' if root.exists() else 'missing'}; a folder is needed")
    there = contents(root)
    walk = Walk(root, there.folders, poll)
    chosen = there.folders if classes is None else classes
    of_class = {name: walk.images(name) if name in there.folders else [] for name in chosen}
    count, loose = sum(map(len, of_class.values())), there.images
    if not count and not set(there.folders) - set(chosen):
        return list_flat(root, poll)
    if not count:
        raise DataError(f"{root} has no images in the class folders {some(list(chosen))}")
    if len(loose) >= count:
        raise DataError(
            f"{root} holds {len(loose)} images directly and {count} in its folders ({some(chosen)}): give each class a "
            f"folder of its own, or give data.labels=none to read all of them without classes"
        )
    notes = list(_folder_notes(root, of_class, loose, there.nowhere))
    found = [(name, label, info) for label, c in enumerate(chosen) for name, info in of_class[c]]
    return _listing(root, found, chosen, [*notes, *walk.notes()])


def list_flat(root: Path, poll: Callable[[], None] = lambda: None) -> Listing:
    """Return every image file below `root` at any depth, without classes.

    Args, Raises: as list_images.
    """
    walk = Walk(root, [""], poll)
    found = [(name, UNLABELLED, info) for name, info in walk.images("")]
    if not found:
        others = f"; it has {some(list(walk.suffixes))} files" if walk.suffixes else ""
        hint = next((hint for suffix, hint in OTHER_DATA.items() if suffix in walk.suffixes), "")
        raise DataError(f"data.root={root} holds no images ({', '.join(sorted(SUFFIXES))}){others}{hint}")
    return _listing(root, found, [], list(walk.notes()))


# suffix -> what reads such files
OTHER_DATA = {".tar": ", which data=webdataset reads", ".parquet": ", which data=huggingface reads"}


def _folder_notes(root: Path, of_class: dict[str, Found], loose: list[str], nowhere: list[str]) -> Iterator[str]:
    if empty := [name for name, found in of_class.items() if not found]:
        yield f"{root}: {len(empty)} class folders hold no images: {some(empty)}"
    if loose:
        yield f"{root}: {len(loose)} images lie in no class folder and are not read: {some(loose)}"
    if nowhere:
        yield f"{root}: {len(nowhere)} symbolic links lead nowhere: {some(nowhere)}"


def _listing(
    root: Path, found: list[tuple[str, int, os.stat_result]], classes: Sequence[str], notes: Sequence[str]
) -> Listing:
    return Listing(
        root,
        tuple(name for name, _, _ in found),
        tuple(info.st_size for _, _, info in found),
        tuple(label for _, label, _ in found),
        tuple(classes),
        stamp_of((name, info) for name, _, info in found),
        inodes=_inodes(info for _, _, info in found),
        notes=tuple(notes),
    )


def _inodes(found: Iterable[os.stat_result]) -> np.ndarray:
    """(N, 2) int64 device and inode of each file; an unsigned 64-bit inode wraps."""
    pairs = np.array([(info.st_dev, info.st_ino) for info in found], np.uint64).reshape(-1, 2)
    return pairs.view(np.int64)


def list_pairs(root: Path, poll: Callable[[], None] = lambda: None) -> Listing:
    """Return every image file below root/images/, and for each the file below root/masks/ of its name, suffix aside.

    The images are of one class, "figure"; their stamp changes with the masks too.

    Raises:
        DataError: a folder is missing or empty, an image has no mask, or a name has two.
        StorageError: reading failed.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DataError(f"{root} has no folder {name}/; images/NAME.jpg and masks/NAME.png are needed there")
    walks = {name: Walk(root, [name], poll) for name in ("images", "masks")}
    images, seen = (walk.images(name) for name, walk in walks.items())
    masks = {_stem(name): (name, info) for name, info in seen}
    if not images:
        raise DataError(f"{root / 'images'} holds no images")
    if missing := [name for name, _ in images if _stem(name) not in masks]:
        raise DataError(
            f"{root / missing[0]} has no mask; {root / 'masks' / _stem(missing[0])}.png is needed "
            f"({len(missing)} of {len(images)} images have none)"
        )
    if twice := [name for name, _ in seen if masks[_stem(name)][0] != name]:
        raise DataError(f"{root / twice[0]} and {root / masks[_stem(twice[0])][0]} are masks of one name; keep one")
    notes = [note for walk in walks.values() for note in walk.notes()]
    stems = {_stem(name) for name, _ in images}
    if alone := [name for name, _ in seen if _stem(name) not in stems]:
        notes.append(f"{root}: {len(alone)} masks have no image and are not read: {some(alone)}")
    pairs = [masks[_stem(name)] for name, _ in images]
    listing = _listing(root, [(name, 0, info) for name, info in images], ["figure"], notes)
    return replace(listing, stamp=stamp_of([*images, *pairs]), masks=tuple(root / name for name, _ in pairs))


def _stem(name: str) -> str:
    """The name below the first folder, suffix aside."""
    return os.path.splitext(name.partition(os.sep)[2])[0]


def number_of_classes(labels: Sequence[int], names: Sequence[str], place: str) -> int:
    """Return how many classes there are where they are numbers: one more than the largest label; 0 without labels.

    Args:
        labels: of each image; UNLABELLED where it has none.
        names: of the images, for errors.
        place: that they are in, for errors.

    Raises:
        DataError: some images have a label and others none, or a label is at least MOST_CLASSES and at least the
            number of images.
    """
    without = [name for name, label in zip(names, labels, strict=True) if label == UNLABELLED]
    if len(without) == len(labels):
        return 0
    if without:
        raise DataError(
            f"{place}: {len(without)} of {len(labels)} images have no class, the first: {without[0]}; "
            f"give each of them one, or none at all"
        )
    if (last := max(labels)) >= max(MOST_CLASSES, len(labels)):
        name = names[labels.index(last)]
        raise DataError(
            f"{place}: {name} has class {last}, and there are {len(labels)} images; a class is a number "
            f"below {MOST_CLASSES}, or below the number of images where that is larger"
        )
    return last + 1


def stamp_of(found: Iterable[tuple[str, os.stat_result]]) -> str:
    """Hash of files' names, sizes and times of change."""
    stamp = hashlib.sha256()
    for name, info in found:
        stamp.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n".encode("utf8", "surrogateescape"))
    return stamp.hexdigest()

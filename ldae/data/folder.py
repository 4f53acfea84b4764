"""Finding image files in class folders, and knowing them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ldae.data.decode import SUFFIXES
from ldae.data.sources import Source, in_folder
from ldae.errors import DataError


@dataclass(frozen=True)
class Listing:
    """Image files of one split.

    Attributes:
        root: the folder that the files' names are relative to.
        files: names, sorted.
        sizes: bytes of each file.
        labels: class index of each file.
        classes: class names, sorted.
        stamp: hash of names, sizes and modification times: changes when a file does.
        locate: (root, name) -> where an image's bytes lie.
        stream: gives the bytes of all images in order, where they can only be read so.
    """

    root: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    stamp: str
    locate: Callable[[Path, str], Source] = in_folder
    stream: Callable[[], Iterable[bytes]] | None = None

    @property
    def sources(self) -> Iterable[Source]:
        """Where the bytes of each image lie."""
        return self.stream() if self.stream else (self.locate(self.root, name) for name in self.files)


def list_classes(root: Path) -> list[str]:
    """Names of the class folders directly below `root`, sorted."""
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def list_images(root: Path, classes: list[str] | None = None) -> Listing:
    """Every image file below root/CLASS/. A file reached by several links counts once.

    Raises:
        DataError: `root` is no folder, or holds no images in class folders.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is {'a file' if root.exists() else 'missing'}; a folder is needed")
    classes = list_classes(root) if classes is None else classes
    seen: set[str] = set()
    found = [(name, label, info) for label, c in enumerate(classes) for name, info in _walk(root, c, seen)]
    if not found:
        raise DataError(f"data.root={root} has no images in class folders (CLASS/NAME.png and the like)")
    files, labels = tuple(name for name, _, _ in found), tuple(label for _, label, _ in found)
    sizes = tuple(info.st_size for _, _, info in found)
    stamp = stamp_of((name, info) for name, _, info in found)
    return Listing(root, files, sizes, labels, tuple(classes), stamp)


def list_pairs(root: Path) -> tuple[Listing, tuple[Path, ...]]:
    """Every image file below root/images/, and for each the file below root/masks/ that has its name, suffix aside.

    Returns:
        The images as one class, "figure", their stamp changing with the masks too; and the masks.

    Raises:
        DataError: a folder is missing or empty, an image has no mask, or a name has two.
    """
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DataError(f"{root} has no folder {name}/; images/NAME.jpg and masks/NAME.png are needed there")
    images, seen = _walk(root, "images", set()), _walk(root, "masks", set())
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
    pairs = [masks[_stem(name)] for name, _ in images]
    files, sizes = tuple(name for name, _ in images), tuple(info.st_size for _, info in images)
    listing = Listing(root, files, sizes, (0,) * len(files), ("figure",), stamp_of([*images, *pairs]))
    return listing, tuple(root / name for name, _ in pairs)


def _stem(name: str) -> str:
    """The name below the first folder, suffix aside."""
    return os.path.splitext(name.partition(os.sep)[2])[0]


def stamp_of(found: Iterable[tuple[str, os.stat_result]]) -> str:
    """Hash of files' names, sizes and times of change."""
    stamp = hashlib.sha256()
    for name, info in found:
        stamp.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n".encode("utf8", "surrogateescape"))
    return stamp.hexdigest()


def _walk(root: Path, top: str, seen: set[str]) -> list[tuple[str, os.stat_result]]:
    """(name relative to root, stat) of the image files below root/top, sorted; visits each real folder once."""
    found: list[tuple[str, os.stat_result]] = []
    for folder, subfolders, names in os.walk(root / top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.splitext(name)[1].lower() in SUFFIXES and not _again(path, seen):
                found.append((os.path.relpath(path, root), _stat(path)))
    return sorted(found, key=lambda item: item[0])


def _again(path: str, seen: set[str]) -> bool:
    """Whether `path` is a link to a file that was met already, or dangles."""
    if not os.path.islink(path):
        seen.add(path)
        return False
    real = os.path.realpath(path)
    known = real in seen or not os.path.isfile(real)
    seen.add(real)
    return known


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None

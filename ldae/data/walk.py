"""Walking through folders of images: every real file once, by the class of its real place, nothing lost in silence."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldae.core.errors import DataError, Fault, StorageError
from ldae.data.decode import SUFFIXES
from ldae.data.layout import some

USERS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
MOST_COUNTED = 10_000  # images of a folder that is not read
NO_IMAGES = ("thumbs.db", "desktop.ini")  # what operating systems leave in folders of images

Found = list[tuple[str, os.stat_result]]


class Walk:
    """List the image files below some folders of a root.

    A symbolic link that leads to another place below these folders, or to a folder above, is passed over: its images
    count once, at their real place. One that leads elsewhere is followed. One that leads nowhere counts as an image
    that cannot be read.

    Args:
        root: folder that names are relative to.
        folders: names of the folders directly below it that images may lie in; [""] for the root itself.
        poll: called for each folder; raises when the run is to stop.
    """

    def __init__(self, root: Path, folders: Sequence[str], poll: Callable[[], None] = lambda: None):
        self.root, self.poll = root, poll
        self.real = os.path.realpath(root)
        self.links: list[str] = []
        self.nowhere: list[str] = []
        self.irregular: list[str] = []
        self.doubles: list[str] = []
        self.suffixes: Counter[str] = Counter()
        self.files = dict[str, tuple[str, str]]()  # real path of each file that links lead to -> its folder and name
        self.inodes = dict[tuple[int, int], tuple[str, str]]()  # of files with several names
        self.owners = self._owners(folders)

    def _owners(self, folders: Sequence[str]) -> dict[str, str]:
        """Return {real path: name} of the folders; a link to a place below another one is none of its own."""
        links = [name for name in folders if name and os.path.islink(self.root / name)]
        self.owners = {os.path.realpath(self.root / name): name for name in folders if name not in links}
        outside = dict[str, str]()
        for name in links:
            target = os.path.realpath(self.root / name)
            if _within(self.real, target) or self._owner(target) is not None:
                continue
            if target in outside:
                raise DataError(f"{self.root}: {outside[target]} and {name} are links to one folder; keep one")
            outside[target] = name
        return self.owners | outside

    def images(self, folder: str) -> Found:
        """Return (name relative to the root, stat) of the image files below root/folder, sorted by name.

        Raises:
            DataError: a folder cannot be listed, or one image lies in two of the folders.
            StorageError: reading failed.
        """
        real = os.path.realpath(self.root / folder)
        if self._owner(real) != folder:
            self.links.append(folder)
            return []
        found: Found = []
        waiting, visited = [(folder, real)], {real}
        while waiting:
            self.poll()
            place, real = waiting.pop()
            for entry in entries(self.root / place):
                name, target = os.path.join(place, entry.name), os.path.join(real, entry.name)
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not leads_somewhere(entry):
                        self._leads_nowhere(name, entry, found)
                        continue
                    if self._listed(target, entry) or target in visited:
                        self.links.append(name)
                        continue
                if not is_folder(entry):
                    self._file(folder, name, target, entry, found)
                elif self.owners.get(target, folder) != folder:
                    self.links.append(name)
                elif place or not entry.name.startswith("."):
                    visited.add(target)
                    waiting.append((name, target))
        return sorted(found, key=lambda item: item[0])

    def notes(self) -> Iterator[str]:
        """Yield a sentence on each kind of thing that was passed over."""
        if self.links:
            yield (
                f"{self.root}: {len(self.links)} symbolic links lead to other places of the same folder and are not "
                f"followed (each image counts once, by its real place): {some(self.links)}"
            )
        if self.nowhere:
            yield f"{self.root}: {len(self.nowhere)} symbolic links lead nowhere: {some(self.nowhere)}"
        if self.irregular:
            names = some(self.irregular)
            yield f"{self.root}: {len(self.irregular)} images are no regular files and are not read: {names}"
        if self.doubles:
            yield f"{self.root}: {len(self.doubles)} images lie in two classes (hard links): {some(self.doubles)}"
        if self.suffixes:
            kinds = [f"{kind} ({count})" for kind, count in self.suffixes.most_common()]
            yield (
                f"{self.root}: {self.suffixes.total()} files are not read for their suffix: {some(kinds)}; "
                f"images are {', '.join(sorted(SUFFIXES))}"
            )

    def _owner(self, path: str) -> str | None:
        """Return the folder that a real path lies in, or None; of the root itself, without its hidden folders."""
        inner = ""
        while path not in self.owners:
            path, inner = os.path.split(path)
            if not inner:
                return None
        owner = self.owners[path]
        return None if owner == "" and inner.startswith(".") else owner

    def _listed(self, target: str, entry: os.DirEntry[str]) -> bool:
        """Return whether a link's target is listed at its own place, or is a folder that holds the root."""
        if is_folder(entry):
            return _within(self.real, target) or self._owner(target) is not None
        return _is_image(target) and self._owner(target) is not None

    def _file(self, folder: str, name: str, real: str, entry: os.DirEntry[str], found: Found) -> None:
        if not _is_image(name):
            if not entry.name.startswith(".") and entry.name.lower() not in NO_IMAGES:
                self.suffixes[os.path.splitext(name)[1].lower() or "none"] += 1
            return
        info = _stat(entry)
        if not stat.S_ISREG(info.st_mode):
            self.irregular.append(name)
            return
        if entry.is_symlink() or not _within(real, self.real):
            other, first = self.files.setdefault(real, (folder, name))
            if other != folder:
                raise DataError(
                    f"{self.root / name} and {self.root / first} are links to one image, which has one class; keep one"
                )
            if first != name:
                self.links.append(name)
                return
        if info.st_nlink > 1 and info.st_ino:
            other, first = self.inodes.setdefault((info.st_dev, info.st_ino), (folder, name))
            if other != folder:
                self.doubles.append(f"{name} = {first}")
        found.append((name, info))

    def _leads_nowhere(self, name: str, entry: os.DirEntry[str], found: Found) -> None:
        if _is_image(name):
            found.append((name, entry.stat(follow_symlinks=False)))  # decoding it fails, and is counted
        elif not entry.name.startswith("."):
            self.nowhere.append(name)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is directly in a folder, sorted by name.

    Raises:
        DataError: it cannot be listed.
        StorageError: reading failed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(f"the folder {folder} cannot be listed", error) from None


def unreadable(sentence: str, error: OSError) -> Fault:
    """Return the fault for a path that cannot be read: of the data, or of the storage below it."""
    if error.errno in USERS:
        return DataError(f"{sentence} ({error.strerror})")
    return StorageError(f"{sentence} ({error.strerror}); run the same command again once it can be read")


def count_images(root: Path) -> int:
    """Return how many image files lie below a folder, counted up to MOST_COUNTED."""
    count = 0
    for _, _, names in os.walk(root):
        count += sum(map(_is_image, names))
        if count >= MOST_COUNTED:
            return MOST_COUNTED
    return count


def leads_somewhere(entry: os.DirEntry[str]) -> bool:
    """Return False for a link whose target is missing, or that leads to itself."""
    try:
        entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and entry.is_symlink():
            return False
        raise unreadable(f"{entry.path} cannot be read", error) from None
    return True


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one.

    Raises:
        DataError, StorageError: that cannot be read.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        raise unreadable(f"{entry.path} cannot be read", error) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise unreadable(f"{entry.path} cannot be read", error) from None


@dataclass(frozen=True)
class Contents:
    """Return value of `contents`: what is directly in a folder, names sorted, hidden ones left out.

    Attributes:
        folders: folders, and links to folders.
        images: image files.
        nowhere: links that lead nowhere.
    """

    folders: list[str]
    images: list[str]
    nowhere: list[str]


def contents(root: Path) -> Contents:
    """Return what is directly in a folder.

    Raises:
        DataError: it cannot be listed.
        StorageError: reading failed.
    """
    found = Contents([], [], [])
    for entry in entries(root):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not leads_somewhere(entry):
            found.nowhere.append(entry.name)
        elif is_folder(entry):
            found.folders.append(entry.name)
        elif _is_image(entry.name):
            found.images.append(entry.name)
    return found

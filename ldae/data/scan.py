"""Scan of folders for image files: each real file once, in the class of its real folder, with notes on all others."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldae.core.errors import DataError, Fault, StorageError, abbreviate
from ldae.data.decode import SUFFIXES

# errors of a path or its permissions; all others are errors of the storage
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
MAX_COUNTED = 10_000  # images at which the count of an unread folder stops
IGNORED = ("thumbs.db", "desktop.ini")  # files that operating systems leave in folders of images

Files = list[tuple[str, os.stat_result]]


class FolderScan:
    """Scan of folders of a root for image files.

    A symbolic link to another path below these folders, or to a parent folder, is skipped: its images count once, at
    their real path. A link to a path elsewhere is followed. A link without a target counts as an unreadable image.

    Args:
        root: folder that names are relative to.
        folders: names of the folders directly below `root` to scan; [""] for the root itself.
        poll: function called for each folder; raises when the run is to stop.
    """

    def __init__(self, root: Path, folders: Sequence[str], poll: Callable[[], None] = lambda: None):
        self.root, self.poll = root, poll
        self.real = os.path.realpath(root)
        self.links: list[str] = []
        self.broken_links: list[str] = []
        self.irregular: list[str] = []
        self.doubles: list[str] = []
        self.suffixes: Counter[str] = Counter()
        self.files = dict[str, tuple[str, str]]()  # real path of the target of links -> (folder, name)
        self.inodes = dict[tuple[int, int], tuple[str, str]]()  # (device, inode) of hard links -> (folder, name)
        self.owners = self._find_owners(folders)

    def _find_owners(self, folders: Sequence[str]) -> dict[str, str]:
        """Return {real path: name} of the folders without links to a path below another folder."""
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

    def images(self, folder: str) -> Files:
        """Return (name relative to the root, stat) of the image files below root/folder, sorted by name.

        Raises:
            DataError: a folder cannot be listed, or one image is in two of the folders.
            StorageError: reading failed.
        """
        real = os.path.realpath(self.root / folder)
        if self._owner(real) != folder:
            self.links.append(folder)
            return []
        files: Files = []
        pending, visited = [(folder, real)], {real}
        while pending:
            self.poll()
            current, real = pending.pop()
            for entry in list_entries(self.root / current):
                name, target = os.path.join(current, entry.name), os.path.join(real, entry.name)
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not has_target(entry):
                        self._add_broken_link(name, entry, files)
                        continue
                    if self._is_listed(target, entry) or target in visited:
                        self.links.append(name)
                        continue
                if not is_folder(entry):
                    self._add_file(folder, name, target, entry, files)
                elif self.owners.get(target, folder) != folder:
                    self.links.append(name)
                elif current or not entry.name.startswith("."):
                    visited.add(target)
                    pending.append((name, target))
        return sorted(files, key=lambda item: item[0])

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each reason why files were skipped."""
        if self.links:
            yield (
                f"{self.root}: {len(self.links)} symbolic links lead to other places of the same folder and are not "
                f"followed (each image counts once, by its real place): {abbreviate(self.links)}"
            )
        if links := self.broken_links:
            yield f"{self.root}: {len(links)} symbolic links have no target: {abbreviate(links)}"
        if self.irregular:
            names = abbreviate(self.irregular)
            yield f"{self.root}: {len(self.irregular)} images are no regular files and are not read: {names}"
        if self.doubles:
            yield f"{self.root}: {len(self.doubles)} images lie in two classes (hard links): {abbreviate(self.doubles)}"
        if self.suffixes:
            suffixes = [f"{suffix} ({count})" for suffix, count in self.suffixes.most_common()]
            yield (
                f"{self.root}: {self.suffixes.total()} files are not read for their suffix: {abbreviate(suffixes)}; "
                f"images are {', '.join(sorted(SUFFIXES))}"
            )

    def _owner(self, path: str) -> str | None:
        """Return the name of the folder that contains a real path, or None; the root has no hidden folders."""
        inner = ""
        while path not in self.owners:
            path, inner = os.path.split(path)
            if not inner:
                return None
        owner = self.owners[path]
        return None if owner == "" and inner.startswith(".") else owner

    def _is_listed(self, target: str, entry: os.DirEntry[str]) -> bool:
        """Return whether the target of a link is listed under its own path, or is a folder that contains the root."""
        if is_folder(entry):
            return _within(self.real, target) or self._owner(target) is not None
        return _is_image(target) and self._owner(target) is not None

    def _add_file(self, folder: str, name: str, real: str, entry: os.DirEntry[str], files: Files) -> None:
        """Append an image file to `files`, or count it among those that are skipped."""
        if not _is_image(name):
            if not entry.name.startswith(".") and entry.name.lower() not in IGNORED:
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
        files.append((name, info))

    def _add_broken_link(self, name: str, entry: os.DirEntry[str], files: Files) -> None:
        if _is_image(name):
            files.append((name, entry.stat(follow_symlinks=False)))  # counts as unreadable when it is decoded
        elif not entry.name.startswith("."):
            self.broken_links.append(name)


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        DataError: the folder cannot be listed.
        StorageError: reading failed.
    """
    try:
        with os.scandir(folder) as iterator:
            return sorted(iterator, key=lambda entry: entry.name)
    except OSError as error:
        raise wrap_data_error(f"the folder {folder} cannot be listed", error) from None


def wrap_data_error(sentence: str, error: OSError) -> Fault:
    """Return the fault for an unreadable path: DataError for the path and its permissions, else StorageError."""
    if error.errno in PATH_ERRORS:
        return DataError(f"{sentence} ({error.strerror})")
    return StorageError(f"{sentence} ({error.strerror}); run the same command again once it can be read")


def count_images(root: Path) -> int:
    """Return the number of image files below a folder, at most MAX_COUNTED."""
    count = 0
    for _, _, names in os.walk(root):
        count += sum(map(_is_image, names))
        if count >= MAX_COUNTED:
            return MAX_COUNTED
    return count


def has_target(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is not a link, or a link whose target exists and is not itself."""
    try:
        entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and entry.is_symlink():
            return False
        raise wrap_data_error(f"{entry.path} cannot be read", error) from None
    return True


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one.

    Raises:
        DataError, StorageError: the entry is unreadable.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        raise wrap_data_error(f"{entry.path} cannot be read", error) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise wrap_data_error(f"{entry.path} cannot be read", error) from None


@dataclass(frozen=True)
class Contents:
    """Names in a folder, sorted, without hidden ones.

    Attributes:
        folders: folders, and links to folders.
        images: image files.
        broken_links: links without a target.
    """

    folders: list[str]
    images: list[str]
    broken_links: list[str]


def list_folder(root: Path) -> Contents:
    """Return the names of the folders, images and broken links in a folder.

    Raises:
        DataError: the folder cannot be listed.
        StorageError: reading failed.
    """
    contents = Contents([], [], [])
    for entry in list_entries(root):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not has_target(entry):
            contents.broken_links.append(entry.name)
        elif is_folder(entry):
            contents.folders.append(entry.name)
        elif _is_image(entry.name):
            contents.images.append(entry.name)
    return contents

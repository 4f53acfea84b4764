"""Images in tar files, as WebDataset has them: KEY.jpg and KEY.cls (or KEY.json) next to each other."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from ldae.core.errors import DataError
from ldae.core.files import json_hash, read_sealed_json, write_sealed_json
from ldae.data.cache import Context, kept_json
from ldae.data.datasets import ImageFolder, existing_root
from ldae.data.decode import SUFFIXES
from ldae.data.folder import UNLABELLED, Listing, number_of_classes, stamp_of
from ldae.data.images import Splits
from ldae.data.layout import NONE, USUAL, some
from ldae.data.sources import in_tar
from ldae.data.walk import entries, unreadable

FORMAT = 2
KEYS = ("cls", "label")  # of KEY.json
END = bytes(1024)
NO_IMAGES = frozenset({"txt", "json", "cls"})  # kinds that are not meant to be images


class TarShards(ImageFolder):
    """root/train*.tar and, if there are any, root/val*.tar and root/test*.tar, or any other tar files alone.

    The names are in any letter case. Each image's class is a whole number; where no image has one, the set has no
    classes. The files are gone through once to learn where each image lies; an image is then read from there, so that
    order, augmentation and resumption are those of any other set, exactly. Classes are called by their numbers, or by
    the lines of root/classes.txt.

    Args: as ImageFolder, all classes kept, and
        train_split, holdout_split, test_split: how the names of a split's tar files begin.
    """

    label_hint = "give each KEY.jpg a KEY.cls with the number of its class"

    def open(self, context: Context) -> Splits:
        root = existing_root(self.root, "train-000.tar, train-001.tar, ...")
        files = [e.name for e in entries(root) if e.name.lower().endswith(".tar") and not e.name.startswith(".")]
        if not files:
            raise DataError(f"data.root={self.root} has no *.tar; give the folder of WebDataset's tar files")
        begins = list(dict.fromkeys(filter(None, (self._beginning(name) for name in files))))
        names = self.split_names.among(begins, str(root))
        if "train" not in names and names:
            raise DataError(
                f"data.root={self.root} has {some(files)} and no train*.tar; "
                "name the beginning of the training files by data.train_split=NAME"
            )
        shards = {key: [n for n in files if self._beginning(n) == begin] for key, begin in names.items()}
        shards = shards or {"train": files}
        listings = {key: self._listing(root, some_of, context) for key, some_of in shards.items()}
        unread = sorted(set(files) - {name for some_of in shards.values() for name in some_of})
        notes = [f"{root}: tar files that are not read: {some(unread)}"] if unread else []
        if listings["train"].labelled:
            count = len(listings["train"].classes)
            listings["train"] = replace(listings["train"], classes=tuple(_names(root, count)))
        called = {key: f"{names[key]}*.tar" if key in names else str(root) for key in shards}
        return self._opened(listings, partial(self._read, context=context), called, notes)

    def _beginning(self, name: str) -> str:
        """Return what says which split a tar file is of: a name that was given, or a usual one; else nothing."""
        given = (self.split_names.train, self.split_names.holdout, self.split_names.test)
        for begin in sorted((g for g in given if g not in (None, NONE)), key=lambda g: -len(str(g))):
            if name.startswith(str(begin)):
                return str(begin)
        usual = sorted((u for names in USUAL.values() for u in names), key=lambda u: -len(u))
        return next((name[: len(u)] for u in usual if name.lower().startswith(u)), "")

    def _listing(self, root: Path, names: Sequence[str], context: Context) -> Listing:
        return list_shards(root, [root / name for name in names], context, self.labels != NONE)


def list_shards(root: Path, shards: Sequence[Path], context: Context, labelled: bool = True) -> Listing:
    """Every image of some tar files in `root`, called TAR/MEMBER@OFFSET+SIZE; kept in the cache.

    Args:
        labelled: whether to read classes.

    Raises:
        DataError: a file is no whole tar file, holds no images, or some images have a class and others none.
    """
    try:
        stamp = stamp_of((shard.name, shard.stat()) for shard in shards)
    except OSError as error:
        raise unreadable(f"{error.filename} cannot be read", error) from None
    path = context.cache / "shards" / f"{json_hash([FORMAT, stamp, labelled])[:20]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if kept_json(path) is None:
            contents = [_contents(shard, context, labelled) for shard in shards]
            members = [member for of_shard in contents for member in of_shard.members]
            kept = dict(zip(("names", "sizes", "labels"), zip(*members, strict=True), strict=True))
            write_sealed_json(path, {**kept, "notes": [note for of_shard in contents for note in of_shard.notes]})
    found = read_sealed_json(path)
    labels, names = tuple(found["labels"]), tuple(found["names"])
    classes = tuple(str(i) for i in range(number_of_classes(labels, names, str(root))))
    return Listing(root, names, tuple(found["sizes"]), labels, classes, stamp, in_tar, notes=tuple(found["notes"]))


class _Contents:
    """Collect the images and classes of one tar file.

    Args:
        shard: the file.
        labelled: whether to read classes.

    Attributes:
        members: (name, size, class) of each image, in order; the class is UNLABELLED where there is none.
        notes: sentences on what is not read.
    """

    def __init__(self, shard: Path, labelled: bool):
        self.shard, self.labelled, self.unread = shard, labelled, Counter[str]()
        self.images, self.classes = dict[str, tuple[str, int]](), dict[str, int]()

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Take note of a member.

        Raises:
            DataError: it has the key of another, or holds no class though its name says so.
        """
        folder, slash, name = member.name.rpartition("/")
        key, _, kind = name.partition(".")
        key, kind = folder + slash + key, kind.lower()
        if member.isdir():
            return
        if not member.isfile():
            self.unread["links and the like"] += 1
        elif f".{kind}" in SUFFIXES:
            place = f"{self.shard.name}/{member.name}@{member.offset_data}+{member.size}"
            if key in self.images:
                raise DataError(f"{self.shard} has two images called {key}; give each a key of its own")
            self.images[key] = (place, member.size)
        elif kind in ("cls", "json") and self.labelled:
            text = tar.extractfile(member)
            label = _class_in(text.read() if text else b"", kind, f"{self.shard}: {member.name}")
            if label is not None and self.classes.setdefault(key, label) != label:
                raise DataError(f"{self.shard}: {key} has the classes {self.classes[key]} and {label}; keep one")
        elif kind not in NO_IMAGES:
            self.unread[f".{kind}"] += 1

    @property
    def members(self) -> list[tuple[str, int, int]]:
        return [(name, size, self.classes.get(key, UNLABELLED)) for key, (name, size) in self.images.items()]

    @property
    def notes(self) -> list[str]:
        found = [f"{kind} ({count})" for kind, count in self.unread.most_common()]
        notes = [f"{self.shard}: {self.unread.total()} members are not read: {some(found)}"] if found else []
        if alone := [key for key in self.classes if key not in self.images]:
            notes.append(f"{self.shard}: {len(alone)} classes have no image: {some(alone)}")
        return notes


def _contents(shard: Path, context: Context, labelled: bool) -> _Contents:
    """Return what a tar file holds.

    Raises:
        DataError: it is damaged, compressed, or holds no images.
    """
    found = _Contents(shard, labelled)
    try:
        _check_end(shard)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                context.poll()
                found.add(tar, member)
            _check_rest(shard, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard} is no whole, uncompressed tar file ({error})") from None
    except OSError as error:
        raise unreadable(f"{shard} cannot be read", error) from None
    if not found.images:
        raise DataError(f"{shard} holds no images (KEY.jpg and the like)")
    return found


def _check_rest(shard: Path, offset: int) -> None:
    """Refuse a file that goes on after the place where tarfile stopped.

    tarfile stops at the first damaged header, or one of zeros, and raises nothing.

    Args:
        offset: where it stopped.

    Raises:
        EOFError: something comes after it.
    """
    with open(shard, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            if block.count(0) != len(block):
                raise EOFError(f"the header at byte {offset} is damaged, and more comes after it")


def _check_end(shard: Path) -> None:
    """Python's tarfile takes a file that was cut between two members for a whole one.

    Raises:
        EOFError: the file does not end as tar files do, in 1024 bytes of zero.
    """
    with open(shard, "rb") as file:
        file.seek(max(0, shard.stat().st_size - len(END)))
        if file.read() != END:
            raise EOFError("its end is missing")


def _class_in(text: bytes, kind: str, where: str) -> int | None:
    """Return the class in a KEY.cls or KEY.json; None for -1, null, and where a json says nothing of it.

    Raises:
        DataError: what it says is no class.
    """
    try:
        found: Any = json.loads(text) if kind == "json" else text.decode().strip()
    except ValueError:
        found = text
    if isinstance(found, Mapping):
        found = next((found[name] for name in KEYS if name in found), None)
    if found is None or str(found) == str(UNLABELLED):
        return None
    if isinstance(found, bool) or not re.fullmatch(r"\d{1,9}", str(found)):
        raise DataError(f"{where} tells no class; a whole number from 0 is needed (as cls or label in a json)")
    return int(str(found))


def _names(root: Path, count: int) -> list[str]:
    """What `count` classes are called.

    Raises:
        DataError: root/classes.txt has fewer lines.
    """
    path = root / "classes.txt"
    if not path.exists():
        return [str(i) for i in range(count)]
    try:
        names = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if len(names) < count:
        raise DataError(f"{path} names {len(names)} classes, the images have {count}")
    return names[:count]

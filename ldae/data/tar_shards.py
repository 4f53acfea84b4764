"""Images in tar files in the layout of WebDataset: KEY.jpg next to KEY.cls or KEY.json."""

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

from ldae.core.errors import DataError, abbreviate
from ldae.core.files import json_hash, read_sealed_json, write_sealed_json
from ldae.data.cache import Context, read_cached_json
from ldae.data.datasets import ImageFolder, resolve_root
from ldae.data.decode import SUFFIXES, FileSlice, Source
from ldae.data.folder import UNLABELLED, Listing, count_classes, hash_file_stats
from ldae.data.images import Splits
from ldae.data.scan import list_entries, wrap_data_error
from ldae.data.split_names import NONE, USUAL_NAMES

FORMAT = 2
KEYS = ("cls", "label")  # keys of the class in KEY.json
END = bytes(1024)  # last bytes of every tar file
IGNORED = frozenset({"txt", "json", "cls"})  # suffixes without a note that they are not read


class TarShards(ImageFolder):
    """Images in root/train*.tar with optional root/val*.tar and root/test*.tar, or in tar files of any name.

    Names may be in any letter case. The class of each image is an integer; if no image has one, the set has no classes.
    A first pass stores the offset of each image, from which it is then read, so that order, augmentation and
    resumption are exact. Class names are the lines of root/classes.txt, or the numbers.

    Args: as ImageFolder without `only`, and
        train_split, holdout_split, test_split: first letters of the names of a split's tar files.
    """

    label_hint = "give each KEY.jpg a KEY.cls with the number of its class"

    def open(self, context: Context) -> Splits:
        """List and read the images of the tar files, and divide them."""
        root = resolve_root(self.root, "train-000.tar, train-001.tar, ...")
        files = [e.name for e in list_entries(root) if e.name.lower().endswith(".tar") and not e.name.startswith(".")]
        if not files:
            raise DataError(f"data.root={self.root} has no *.tar; give the folder of WebDataset's tar files")
        prefixes = list(dict.fromkeys(filter(None, (self._prefix(name) for name in files))))
        names = self.split_names.resolve(prefixes, str(root))
        if "train" not in names and names:
            raise DataError(
                f"data.root={self.root} has {abbreviate(files)} and no train*.tar; "
                "name the beginning of the training files by data.train_split=NAME"
            )
        shards = {key: [n for n in files if self._prefix(n) == prefix] for key, prefix in names.items()}
        shards = shards or {"train": files}
        listings = {
            key: list_shards(root, [root / name for name in split], context, self.labels != NONE)
            for key, split in shards.items()
        }
        unread = sorted(set(files) - {name for split in shards.values() for name in split})
        notes = [f"{root}: tar files that are not read: {abbreviate(unread)}"] if unread else []
        if listings["train"].labelled:
            count = len(listings["train"].classes)
            listings["train"] = replace(listings["train"], classes=tuple(_class_names(root, count)))
        titles = {key: f"{names[key]}*.tar" if key in names else str(root) for key in shards}
        return self._open_listings(listings, partial(self._read, context=context), titles, notes)

    def _prefix(self, name: str) -> str:
        """Return the beginning of a tar file's name that is the name of a split, configured or usual; else nothing."""
        split_names = (self.split_names.train, self.split_names.holdout, self.split_names.test)
        configured = [str(split) for split in split_names if split not in (None, NONE)]
        for prefix in sorted(configured, key=len, reverse=True):
            if name.startswith(prefix):
                return prefix
        usual = sorted((u for names in USUAL_NAMES.values() for u in names), key=len, reverse=True)
        return next((name[: len(u)] for u in usual if name.lower().startswith(u)), "")


def list_shards(root: Path, shards: Sequence[Path], context: Context, labelled: bool = True) -> Listing:
    """List every image of tar files in `root` under the name TAR/MEMBER@OFFSET+SIZE; the cache keeps the listing.

    Args:
        root: folder of the tar files.
        shards: paths of the tar files.
        context: settings of the cache.
        labelled: whether to read classes.

    Raises:
        DataError: a file is damaged or has no images, or only some images have a class.
    """
    try:
        stamp = hash_file_stats((shard.name, shard.stat()) for shard in shards)
    except OSError as error:
        raise wrap_data_error(f"{error.filename} cannot be read", error) from None
    path = context.cache / "shards" / f"{json_hash([FORMAT, stamp, labelled])[:20]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if read_cached_json(path) is None:
            contents = [_read_contents(shard, context, labelled) for shard in shards]
            members = [member for of_shard in contents for member in of_shard.members]
            columns = dict(zip(("names", "sizes", "labels"), zip(*members, strict=True), strict=True))
            write_sealed_json(path, {**columns, "notes": [note for of_shard in contents for note in of_shard.notes]})
    cached = read_sealed_json(path)
    labels, names = tuple(cached["labels"]), tuple(cached["names"])
    classes = tuple(str(i) for i in range(count_classes(labels, names, str(root))))
    return Listing(
        root, names, tuple(cached["sizes"]), labels, classes, stamp, locate_tar_member, notes=tuple(cached["notes"])
    )


def locate_tar_member(root: Path, name: str) -> Source:
    """Return the slice of a tar file that `list_shards` names TAR/MEMBER@OFFSET+SIZE."""
    member, _, position = name.rpartition("@")
    offset, _, size = position.partition("+")
    return FileSlice(root / member.partition("/")[0], int(offset), int(size))


class _Contents:
    """Images and classes of one tar file.

    Args:
        shard: path of the file.
        labelled: whether to read classes.

    Attributes:
        members: (name, size, class) of each image, in order; UNLABELLED for no class.
        notes: sentences on members that are not read.
    """

    def __init__(self, shard: Path, labelled: bool):
        self.shard, self.labelled, self.unread = shard, labelled, Counter[str]()
        self.images, self.classes = dict[str, tuple[str, int]](), dict[str, int]()

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Add a member.

        Raises:
            DataError: two images or two classes have one key, or a KEY.cls has no class.
        """
        folder, slash, name = member.name.rpartition("/")
        key, _, suffix = name.partition(".")
        key, suffix = folder + slash + key, suffix.lower()
        if member.isdir():
            return
        if not member.isfile():
            self.unread["links and the like"] += 1
        elif f".{suffix}" in SUFFIXES:
            image = f"{self.shard.name}/{member.name}@{member.offset_data}+{member.size}"
            if key in self.images:
                raise DataError(f"{self.shard} has two images called {key}; give each a key of its own")
            self.images[key] = (image, member.size)
        elif suffix in ("cls", "json") and self.labelled:
            file = tar.extractfile(member)
            label = _parse_class(file.read() if file else b"", suffix, f"{self.shard}: {member.name}")
            if label is not None and self.classes.setdefault(key, label) != label:
                raise DataError(f"{self.shard}: {key} has the classes {self.classes[key]} and {label}; keep one")
        elif suffix not in IGNORED:
            self.unread[f".{suffix}"] += 1

    @property
    def members(self) -> list[tuple[str, int, int]]:
        """Return the members of the tar file."""
        return [(name, size, self.classes.get(key, UNLABELLED)) for key, (name, size) in self.images.items()]

    @property
    def notes(self) -> list[str]:
        unread = [f"{suffix} ({count})" for suffix, count in self.unread.most_common()]
        notes = [f"{self.shard}: {self.unread.total()} members are not read: {abbreviate(unread)}"] if unread else []
        if unused := [key for key in self.classes if key not in self.images]:
            notes.append(f"{self.shard}: {len(unused)} classes have no image: {abbreviate(unused)}")
        return notes


def _read_contents(shard: Path, context: Context, labelled: bool) -> _Contents:
    """Return the images and classes of a tar file.

    Raises:
        DataError: the file is damaged, compressed, or has no images.
    """
    contents = _Contents(shard, labelled)
    try:
        _check_end(shard)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                context.poll()
                contents.add(tar, member)
            _check_rest(shard, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard} is no whole, uncompressed tar file ({error})") from None
    except OSError as error:
        raise wrap_data_error(f"{shard} cannot be read", error) from None
    if not contents.images:
        raise DataError(f"{shard} holds no images (KEY.jpg and the like)")
    return contents


def _check_rest(shard: Path, offset: int) -> None:
    """Refuse a file with content after the last header that tarfile read.

    tarfile stops at the first damaged header, or at one of zeros, without an error.

    Args:
        shard: path of the file.
        offset: byte at which tarfile stopped.

    Raises:
        EOFError: a byte after it is not zero.
    """
    with open(shard, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            if block.count(0) != len(block):
                raise EOFError(f"the header at byte {offset} is damaged, and more comes after it")


def _check_end(shard: Path) -> None:
    """Refuse a file that was truncated between two members, which tarfile accepts.

    Raises:
        EOFError: the file does not end in 1024 bytes of zero, as tar files do.
    """
    with open(shard, "rb") as file:
        file.seek(max(0, shard.stat().st_size - len(END)))
        if file.read() != END:
            raise EOFError("its end is missing")


def _parse_class(content: bytes, suffix: str, title: str) -> int | None:
    """Return the class in a KEY.cls or KEY.json; None for -1, null, or a KEY.json without a class.

    Raises:
        DataError: the value is not a class.
    """
    try:
        value: Any = json.loads(content) if suffix == "json" else content.decode().strip()
    except ValueError:
        value = content
    if isinstance(value, Mapping):
        value = next((value[name] for name in KEYS if name in value), None)
    if value is None or str(value) == str(UNLABELLED):
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise DataError(f"{title} has no class; an integer from 0 is needed (as cls or label in a json)")
    return int(str(value))


def _class_names(root: Path, count: int) -> list[str]:
    """Return the names of `count` classes, from root/classes.txt if it exists.

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

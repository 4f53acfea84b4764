"""Images in tar files, as WebDataset has them: KEY.jpg and KEY.cls (or KEY.json) next to each other."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ldae.data.cache import Context
from ldae.data.datasets import ImageFolder, existing_root
from ldae.data.decode import SUFFIXES
from ldae.data.folder import Listing, stamp_of
from ldae.data.images import Splits
from ldae.data.sources import in_tar
from ldae.errors import DataError
from ldae.files import json_hash, read_json, write_json

FORMAT = 1
KEYS = ("cls", "label")  # of KEY.json
END = bytes(1024)


class TarShards(ImageFolder):
    """root/train*.tar and, if there are any, root/val*.tar or root/test*.tar; each image's class is a whole number.

    The files are gone through once to learn where each image lies; an image is then read from there, so that order,
    augmentation and resumption are those of any other set, exactly. Classes are called by their numbers, or by the
    lines of root/classes.txt.

    Args: as ImageFolder, all classes kept.
    """

    def open(self, context: Context) -> Splits:
        root = existing_root(self.root, "train-000.tar, train-001.tar, ...")
        found = {split: sorted(root.glob(f"{split}*.tar")) for split in ("train", "test", "val")}
        if not found["train"]:
            raise DataError(f"data.root={self.root} has no train*.tar; give the folder of WebDataset's tar files")
        listing = list_shards(root, found["train"], context)
        classes = _names(root, 1 + max(listing.labels))
        train, bad, mark = self._read(listing, context)
        held = found["test"] or found["val"]
        if not held:
            return self._splits(train, None, classes, [mark], bad)
        listing = list_shards(root, held, context)
        if max(listing.labels) >= len(classes):
            raise DataError(
                f"{held[0]} has class {max(listing.labels)}, the training images have {len(classes)} classes"
            )
        test, test_bad, test_mark = self._read(listing, context)
        return self._splits(train, test, classes, [mark, test_mark], bad + test_bad)


def list_shards(root: Path, shards: Sequence[Path], context: Context) -> Listing:
    """Every image of some tar files in `root`, called TAR/MEMBER@OFFSET+SIZE; kept in the cache.

    Raises:
        DataError: a file is no whole tar file, holds no images, or an image has no class.
    """
    stamp = stamp_of((shard.name, shard.stat()) for shard in shards)
    path = context.cache / "shards" / f"{json_hash([FORMAT, stamp])[:20]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            members = [member for shard in shards for member in _members(shard, context)]
            write_json(path, dict(zip(("names", "sizes", "labels"), zip(*members, strict=True), strict=True)))
    found = read_json(path)
    labels = tuple(found["labels"])
    classes = tuple(str(i) for i in range(1 + max(labels)))
    return Listing(root, tuple(found["names"]), tuple(found["sizes"]), labels, classes, stamp, in_tar)


def _members(shard: Path, context: Context) -> list[tuple[str, int, int]]:
    """(name, size, class) of each image of a tar file, in its order."""
    images, classes = dict[str, tuple[str, int]](), dict[str, int]()
    try:
        _check_end(shard)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                context.poll()
                folder, slash, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                key, kind = folder + slash + key, kind.lower()
                if not member.isfile():
                    continue
                if f".{kind}" in SUFFIXES:
                    images[key] = (f"{shard.name}/{member.name}@{member.offset_data}+{member.size}", member.size)
                elif kind in ("cls", "json"):
                    text = tar.extractfile(member)
                    classes[key] = _class_in(text.read() if text else b"", kind, f"{shard}: {member.name}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard} is no whole, uncompressed tar file ({error})") from None
    if not images:
        raise DataError(f"{shard} holds no images (KEY.jpg and the like)")
    if missing := [key for key in images if key not in classes]:
        raise DataError(f"{shard}: {missing[0]} has no class; {missing[0]}.cls with its number is needed")
    return [(name, size, classes[key]) for key, (name, size) in images.items()]


def _check_end(shard: Path) -> None:
    """Python's tarfile takes a file that was cut between two members for a whole one.

    Raises:
        EOFError: the file does not end as tar files do, in 1024 bytes of zero.
    """
    with open(shard, "rb") as file:
        file.seek(max(0, shard.stat().st_size - len(END)))
        if file.read() != END:
            raise EOFError("its end is missing")


def _class_in(text: bytes, kind: str, where: str) -> int:
    """The class in a KEY.cls or KEY.json."""
    try:
        found: Any = json.loads(text) if kind == "json" else text.decode().strip()
    except ValueError:
        found = None
    if isinstance(found, Mapping):
        found = next((found[name] for name in KEYS if name in found), None)
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

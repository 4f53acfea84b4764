"""Where the bytes of an image lie: in a file of its own, or in one that holds many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """Some bytes of a file, e.g. one image in a tar file.

    Attributes:
        file: which file.
        offset, size: in bytes.
    """

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Those bytes.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.file, "rb") as whole:
            whole.seek(self.offset)
            return whole.read(self.size)


Source = Path | Member | bytes


def in_folder(root: Path, name: str) -> Source:
    """The file `name` below `root`."""
    return root / name


def in_tar(root: Path, name: str) -> Source:
    """`TAR/MEMBER@OFFSET+SIZE` below `root`: what `list_shards` calls an image."""
    inside, _, place = name.rpartition("@")
    offset, _, size = place.partition("+")
    return Member(root / inside.partition("/")[0], int(offset), int(size))

"""Read pictures of a run's data set or of the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.app.session import Session
from ldae.app.training.monitors import spread
from ldae.core.errors import DataError, abbreviate
from ldae.core.pixels import to_floats
from ldae.core.types import Batch
from ldae.data.decode import BadImage, centre_crop, read_rgb
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import in_order
from ldae.data.scan import list_entries, list_folder

MAX_PIXELS = 100_000_000

# a batch -> its guide (B, 3, H, W) and its mask (B, 3, H, W) in [0, 1], each None where there is none
Guides = Callable[[Batch], tuple[Tensor | None, Tensor | None]]


class Pictures:
    """Pictures in batches.

    Args:
        session: session of the run; pictures are cropped at the centre and resized (bicubic) to its image size.
        own: a file or folder of the user's pictures, or None.
        split: split of the run's data, without own pictures.
        count: number of images of the split.
        batch: images per batch.

    Raises:
        DataError: there is no picture.
    """

    def __init__(self, session: Session, own: str | None, split: str, count: int, batch: int):
        self.session, self.split, self.count, self.batch = session, split, count, batch
        self.names: list[str] | None = None
        self.splits: Splits | None = None
        if own is None:
            self.splits = session.splits()
        else:
            self.files = files_of("pictures", own)
            self.names = [path.stem for path in self.files]

    @property
    def images(self) -> ImageSet:
        """Return the images of the split, evenly spaced over it."""
        assert self.splits is not None
        return spread(getattr(self.splits, self.split), self.count)

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return -(-(len(self.files) if self.names is not None else len(self.images)) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        device, size = self.session.world.device, self.session.parts.data.size
        if self.names is None:
            yield from in_order(self.images, self.batch, device, 0, self.session.stop.poll)
            return
        for start in range(0, len(self.files), self.batch):
            paths = self.files[start : start + self.batch]
            pixels = torch.stack([picture(path, size) for path in paths]).to(device)
            index = torch.arange(start, start + len(paths), device=device)
            yield Batch(pixels, torch.zeros_like(index), index)

    def guides(self, guide: str | None, keep: str | None) -> Guides:
        """Return the function that reads the guide and the mask of a batch from these files or folders."""

        def read(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
            images, masks = (
                self.matching(key, path, batch) if path else None for key, path in (("guide", guide), ("keep", keep))
            )
            return images, masks

        return read

    def matching(self, key: str, path_text: str, batch: Batch) -> Tensor:
        """Return the guides or masks of a batch: one for all, or those of the same names."""
        size, others = self.session.parts.data.size, files_of(key, path_text)
        if len(others) == 1:
            return picture(others[0], size).to(batch.images.device).expand(len(batch), -1, -1, -1)
        named = {path.stem: path for path in others}
        names = [self.names[i] for i in batch.index.tolist()] if self.names else []
        if not names:
            message = "holds several pictures; give one, or pictures= with files of the same names"
            raise DataError(f"{key}={path_text} {message}")
        if missing := [name for name in names if name not in named]:
            raise DataError(f"{key}={path_text} has no picture for {missing[0]}; give files of the same names")
        return torch.stack([picture(named[name], size) for name in names]).to(batch.images.device)


def files_of(key: str, path_text: str) -> list[Path]:
    """Return a picture, or the pictures directly in a folder, sorted; warn of other files.

    Raises:
        DataError: there is no picture, or the folder cannot be listed.
    """
    path = Path(path_text).expanduser()
    if not path.is_dir():
        files = [path]
    else:
        names = list_folder(path).images
        files = [path / name for name in names]
        others = [e.name for e in list_entries(path) if e.name not in names and not e.name.startswith(".")]
        if others:
            print(
                f"warning: {key}={path_text}: {len(others)} other files are not read: {abbreviate(others)}",
                file=sys.stderr,
            )
    if not files or not files[0].is_file():
        raise DataError(f"{key}={path_text} is no picture and no folder of pictures")
    return files


def picture(path: Path, size: int) -> Tensor:
    """Return the centre of a picture, (3, size, size) in [0, 1]."""
    try:
        pixels = np.asarray(centre_crop(read_rgb(path, MAX_PIXELS), size))
    except BadImage as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return to_floats(pixels.copy())

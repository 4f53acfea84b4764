"""Pictures decoded, cut, and put together into batches: by worker processes from files, by threads from a stream."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ldae.counter import uniforms
from ldae.data.cache import ignore_signals
from ldae.data.decode import BadImage, cut_and_resized, read_rgb
from ldae.data.images import FileImages
from ldae.data.sources import Source
from ldae.data.transforms import Augment
from ldae.errors import DataError

ATTEMPTS = 64
AT_ONCE = 8  # images that are held decoded: what is asked of torch is asked for all of them
AHEAD = 4  # batches that are made before they are asked for

T = TypeVar("T")


class Cutter:
    """Crops and mirrors decoded images.

    Args:
        augment: how; a function of (seed, epoch, index).
        seed: of it.
    """

    def __init__(self, augment: Augment, seed: int):
        self.augment, self.seed = augment, seed

    def __call__(self, images: Sequence[Image.Image], epoch: int, index: Tensor, out: Tensor) -> None:
        """Leaves the augmented images, by `index` (N,), in `out`, (N, 3, H, H) uint8."""
        u = uniforms(self.seed, epoch, index, self.augment.n)
        sizes = torch.tensor([image.height for image in images]), torch.tensor([image.width for image in images])
        boxes, flips = self.augment.boxes(u, *sizes).long().tolist(), self.augment.flips(u).tolist()
        for row, (image, box, flip) in enumerate(zip(images, boxes, flips, strict=True)):
            pixels = cut_and_resized(image, box, out.shape[-1], self.augment.exact)
            out[row] = self.augment.finish(pixels.flip(-1) if flip else pixels, u[row])


class _Files(Dataset):
    """(epoch, index) of some images, of one epoch -> (pixels (B, 3, H, W) uint8, index, index asked for).

    An unreadable file gives way to the next.
    """

    def __init__(self, images: FileImages, augment: Augment, seed: int):
        self.images, self.cutter = images, Cutter(augment, seed)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, wanted, size = keys[0][0], torch.tensor([index for _, index in keys]), self.images.size
        pixels, index = torch.empty(len(keys), 3, size, size, dtype=torch.uint8), wanted.clone()
        if get_worker_info() is not None:
            pixels.share_memory_()  # so that it is not copied on its way
        for first in range(0, len(keys), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            found = [self._read(int(i)) for i in wanted[part]]
            index[part] = torch.tensor([i for _, i in found])
            self.cutter([image for image, _ in found], epoch, index[part], pixels[part])
        return pixels, index, wanted

    def _read(self, wanted: int) -> tuple[Image.Image, int]:
        place = int(np.searchsorted(self.images.ids, wanted))
        for offset in range(ATTEMPTS):
            index = int(self.images.ids[(place + offset) % len(self.images)])
            try:
                return read_rgb(self.images.source(index), max_pixels=1 << 62), index
            except BadImage:
                continue
        raise DataError(f"{ATTEMPTS} images in a row from {self.images.name(wanted)} on are unreadable")


def files_loader(
    images: FileImages, augment: Augment, seed: int, keys: Any, workers: int, device: torch.device
) -> DataLoader:
    """Gives (pixels (B, 3, H, W) uint8, index, index asked for) for each batch of keys, lists of (epoch, index).

    Args:
        workers: processes that read; 0 for this one.
        device: where the batches will go.
    """
    return DataLoader(
        _Files(images, augment, seed),
        batch_sampler=keys,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        collate_fn=_whole,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def _whole(batch: Any) -> Any:
    """What is a batch already."""
    return batch


def streamed(
    steps: Iterable[tuple[int, Tensor, Sequence[Source]]], cutter: Cutter, size: int, threads: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(epoch, index, bytes of those images) of each step -> (pixels (B, 3, size, size) uint8, index).

    Made ahead by threads: Pillow and torch let others work while they do.

    Raises:
        DataError: an image cannot be read.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:

        def batch(step: tuple[int, Tensor, Sequence[Source]]) -> tuple[Tensor, Tensor]:
            epoch, index, sources = step
            pinned = torch.cuda.is_available()  # so that the way to a card can be gone while others work
            pixels = torch.empty(len(index), 3, size, size, dtype=torch.uint8, pin_memory=pinned)

            def part(first: int) -> None:
                rows = slice(first, first + AT_ONCE)
                cutter([_readable(source) for source in sources[rows]], epoch, index[rows], pixels[rows])

            list(pool.map(part, range(0, len(index), AT_ONCE)))
            return pixels, index

        with contextlib.closing(ahead(map(batch, steps), AHEAD)) as batches:
            yield from batches


def _readable(source: Source) -> Image.Image:
    try:
        return read_rgb(source, max_pixels=1 << 62)
    except BadImage as error:
        raise DataError(f"an image of the stream has become unreadable ({error})") from None


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made by a thread before they are asked for."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()

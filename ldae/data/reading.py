"""Pictures decoded, cut, and put together into batches: by worker processes from files, by threads from a stream."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldae.core.errors import DataError, StorageError
from ldae.core.rng import uniforms
from ldae.data.decode import PLAIN, BadImage, Bands, cut_and_resized, read_rgb
from ldae.data.images import FileImages
from ldae.data.sources import Source
from ldae.data.transforms import Augment
from ldae.data.workers import METHOD, WorkerPool

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


Keys = Sequence[tuple[int, int]]  # (epoch, index) of the images of a batch, of one epoch


@dataclass(frozen=True)
class _Files:
    """Reads batches of files. An unreadable file gives way to the next.

    Attributes:
        slots: (S, B, 3, size, size) uint8 that all processes share: batches are left there, not sent.
    """

    images: FileImages
    cutter: Cutter
    slots: Tensor

    def __call__(self, task: tuple[int, Keys]) -> tuple[np.ndarray, np.ndarray]:
        """Fill a slot with a batch; (index read, index asked for), each (B,)."""
        slot, keys = task
        epoch, requested = keys[0][0], torch.tensor([index for _, index in keys])
        pixels, index = self.slots[slot], requested.clone()
        for first in range(0, len(keys), AT_ONCE):
            part = slice(first, min(first + AT_ONCE, len(keys)))
            images, places = zip(*(self._read(int(i)) for i in requested[part]), strict=True)
            index[part] = torch.tensor(places)
            self.cutter(images, epoch, index[part], pixels[part])
        return index.numpy(), requested.numpy()  # a tensor would be passed by a file that dies with its process

    def _read(self, requested: int) -> tuple[Image.Image, int]:
        place = int(np.searchsorted(self.images.ids, requested))
        for offset in range(ATTEMPTS):
            index = int(self.images.ids[(place + offset) % len(self.images)])
            try:
                return read_rgb(self.images.source(index), 1 << 62, self.images.bands), index
            except BadImage:
                if not self.images.root.exists():
                    raise StorageError(
                        f"data.root={self.images.root} is no longer there; bring it back and run the same command again"
                    ) from None
        raise DataError(f"{ATTEMPTS} images in a row from {self.images.name(requested)} on are unreadable")


def file_batches(
    images: FileImages,
    augment: Augment,
    seed: int,
    keys: Iterable[Keys],
    batch: int,
    workers: int,
    device: torch.device,
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """Yield (pixels (B, 3, H, W) uint8, index, index asked for) of each batch of keys.

    Args:
        batch: the largest number of keys at a time.
        workers: processes that read; 0 for this one.
        device: where the batches will go.

    Raises:
        PeerError: a process died.
        StorageError: the disk or the network fails, or the data's folder is gone.
        DataError: many images in a row are unreadable.
    """
    slots = _shared((max(1, workers * AHEAD), batch, 3, images.size, images.size), workers)
    work = _Files(images, Cutter(augment, seed), slots)
    tasks = ((turn % len(slots), list(some)) for turn, some in enumerate(keys))
    if workers:
        results: Iterator[tuple[Any, Any]] = WorkerPool(work, workers).map(tasks, AHEAD)
    else:
        results = map(work, tasks)  # lazily
    for turn, (index, requested) in enumerate(results):
        pixels = torch.empty(slots[0, : len(index)].shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        pixels.copy_(slots[turn % len(slots), : len(index)])  # the slot is free for another batch
        yield pixels, torch.as_tensor(index), torch.as_tensor(requested)


def _shared(shape: tuple[int, ...], workers: int) -> Tensor:
    """Return uint8 numbers that worker processes share with this one."""
    if workers and METHOD == "fork":  # memory of no file: /dev/shm may be as small as 64 MiB
        return torch.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=torch.uint8).reshape(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_() if workers else torch.empty(shape, dtype=torch.uint8)


def streamed(
    steps: Iterable[tuple[int, Tensor, Sequence[Source]]], cutter: Cutter, size: int, threads: int, bands: Bands = PLAIN
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
                cutter([_readable(source, bands) for source in sources[rows]], epoch, index[rows], pixels[rows])

            list(pool.map(part, range(0, len(index), AT_ONCE)))
            return pixels, index

        with contextlib.closing(ahead(map(batch, steps), AHEAD)) as batches:
            yield from batches


def _readable(source: Source, bands: Bands) -> Image.Image:
    try:
        return read_rgb(source, 1 << 62, bands)
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

"""Batches of decoded and cropped images: from files by worker processes, from a stream by threads."""

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
from torch import Tensor

from ldae.core.errors import DataError, StorageError
from ldae.core.rng import uniforms
from ldae.data.decode import DEFAULT_BANDS, BadImage, Bands, Source, crop_and_resize, read_pixels
from ldae.data.images import FileImages
from ldae.data.transforms import Augment
from ldae.data.workers import START_METHOD, WorkerPool

MAX_UNREADABLE = 64  # unreadable images in a row after which reading fails
CHUNK = 8  # images of a stream that are decoded before they are cropped together: one call of torch for all of them
MAX_BYTES = 2**24  # of decoded images that wait for such a call in a worker; a larger image waits for none
PREFETCH = 4  # batches that are prepared in advance

T = TypeVar("T")


class Cropper:
    """Crop and flip of decoded images.

    Args:
        augment: augmentation, a function of (seed, epoch, index).
        seed: seed of the augmentation.
    """

    def __init__(self, augment: Augment, seed: int):
        self.augment, self.seed = augment, seed

    def __call__(self, images: Sequence[np.ndarray], epoch: int, index: Tensor, out: Tensor) -> None:
        """Write the augmented images, each (H, W, 3), with the indices (N,) to `out`, (N, 3, size, size) uint8."""
        u = uniforms(self.seed, epoch, index, self.augment.n)
        sizes = torch.tensor([len(image) for image in images]), torch.tensor([image.shape[1] for image in images])
        boxes, flips = self.augment.boxes(u, *sizes).long().tolist(), self.augment.flips(u).tolist()
        for row, (image, box, flip) in enumerate(zip(images, boxes, flips, strict=True)):
            pixels = crop_and_resize(image, box, out.shape[-1], self.augment.is_exact)
            out[row] = self.augment.finish(pixels.flip(-1) if flip else pixels, u[row])


Keys = Sequence[tuple[int, int]]  # (epoch, index) of the images of a batch, of one epoch


@dataclass(frozen=True)
class _Files:
    """Reader of batches of files. The next file replaces an unreadable one.

    Attributes:
        slots: (S, B, 3, size, size) uint8 in shared memory, to which workers write batches.
    """

    images: FileImages
    cropper: Cropper
    slots: Tensor

    def __call__(self, task: tuple[int, Keys]) -> tuple[np.ndarray, np.ndarray]:
        """Write a batch to a slot; return the indices of the images read and of those in `keys`, (B,) each."""
        slot, keys = task
        epoch, expected = keys[0][0], torch.tensor([index for _, index in keys])
        pixels, index = self.slots[slot], expected.clone()
        images: list[np.ndarray] = []
        waiting = 0
        for row in range(len(keys)):
            image, index[row] = self._read(int(expected[row]))
            images.append(image)
            waiting += image.nbytes
            if waiting >= MAX_BYTES or row + 1 == len(keys):
                rows = slice(row + 1 - len(images), row + 1)
                self.cropper(images, epoch, index[rows], pixels[rows])
                images, waiting = [], 0
        return index.numpy(), expected.numpy()  # arrays: torch sends tensors by files that vanish with their process

    def _read(self, expected: int) -> tuple[np.ndarray, int]:
        position = int(np.searchsorted(self.images.ids, expected))
        for offset in range(MAX_UNREADABLE):
            index = int(self.images.ids[(position + offset) % len(self.images)])
            try:
                return read_pixels(self.images.source(index), 1 << 62, self.images.bands), index
            except BadImage:
                if not self.images.root.exists():
                    raise StorageError(
                        f"data.root={self.images.root} is no longer there; bring it back and run the same command again"
                    ) from None
        raise DataError(f"{MAX_UNREADABLE} images in a row from {self.images.name(expected)} on are unreadable")


def file_batches(
    images: FileImages,
    augment: Augment,
    seed: int,
    keys: Iterable[Keys],
    batch: int,
    workers: int,
    device: torch.device,
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """Yield (pixels (B, 3, H, W) uint8, index of the images read, index in the keys) of each batch of keys.

    Args:
        images: set of files.
        augment: augmentation.
        seed: seed of the augmentation.
        keys: (epoch, index) of the images of each batch.
        batch: maximum number of keys in a batch.
        workers: number of processes that read; 0 for this process.
        device: destination of the batches; CUDA needs pinned memory.

    Raises:
        PeerError: a process died.
        StorageError: the disk or the network fails, or the folder of the data is missing.
        DataError: many images in a row are unreadable.
    """
    slots = _shared_memory((max(1, workers * PREFETCH), batch, 3, images.size, images.size), workers)
    work = _Files(images, Cropper(augment, seed), slots)
    tasks = ((k % len(slots), list(batch_keys)) for k, batch_keys in enumerate(keys))
    if workers:
        results: Iterator[tuple[Any, Any]] = WorkerPool(work, workers).map(tasks, PREFETCH)
    else:
        results = map(work, tasks)  # lazy
    for k, (index, expected) in enumerate(results):
        pixels = torch.empty(slots[0, : len(index)].shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        # a copy frees the slot for another batch; NumPy's takes one thread, torch's would take others from the workers
        np.copyto(pixels.numpy(), slots[k % len(slots), : len(index)].numpy())
        yield pixels, torch.as_tensor(index), torch.as_tensor(expected)


def _shared_memory(shape: tuple[int, ...], workers: int) -> Tensor:
    """Return an uninitialised uint8 tensor in memory that worker processes share."""
    if workers and START_METHOD == "fork":  # anonymous memory: /dev/shm may be as small as 64 MiB
        return torch.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=torch.uint8).reshape(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_() if workers else torch.empty(shape, dtype=torch.uint8)


def stream_batches(
    steps: Iterable[tuple[int, Tensor, Sequence[Source]]],
    cropper: Cropper,
    size: int,
    threads: int,
    bands: Bands = DEFAULT_BANDS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pixels (B, 3, size, size) uint8, index) of each step (epoch, index, sources of the images).

    Threads prepare batches in advance; the decoders and torch release the interpreter lock.

    Raises:
        DataError: an image is unreadable.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:

        def batch(step: tuple[int, Tensor, Sequence[Source]]) -> tuple[Tensor, Tensor]:
            epoch, index, sources = step
            pinned = torch.cuda.is_available()  # asynchronous copies to a GPU need pinned memory
            pixels = torch.empty(len(index), 3, size, size, dtype=torch.uint8, pin_memory=pinned)

            def crop_rows(first: int) -> None:
                rows = slice(first, first + CHUNK)
                cropper([_read_image(source, bands) for source in sources[rows]], epoch, index[rows], pixels[rows])

            list(pool.map(crop_rows, range(0, len(index), CHUNK)))
            return pixels, index

        with contextlib.closing(prefetch(map(batch, steps), PREFETCH)) as batches:
            yield from batches


def _read_image(source: Source, bands: Bands) -> np.ndarray:
    try:
        return read_pixels(source, 1 << 62, bands)
    except BadImage as error:
        raise DataError(f"an image of the stream has become unreadable ({error})") from None


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the same items; a thread computes up to `depth` of them in advance."""
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

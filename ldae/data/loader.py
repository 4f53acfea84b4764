"""Batches whose order and augmentations are functions of (seed, epoch, index) alone.

The state of a loader is the step: any process can start at any step, with any number of workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import ConfigError, DataError
from ldae.core.rng import uniforms
from ldae.core.types import Batch
from ldae.data.images import FileImages, ImageSet, LatentImages, MemoryImages
from ldae.data.reading import Cropper, file_batches, stream_batches
from ldae.data.streamed import StreamedImages, WindowBuffer
from ldae.data.transforms import Augment, Centre

STEPS_AT_ONCE = 64  # steps on a GPU whose augmentations are drawn together: each draw takes some 30 kernels


@dataclass(frozen=True)
class RankSlice:
    """Rows of a global batch that a process works on."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """Return this process's consecutive rows of a global batch."""
        return rows.chunk(self.world)[self.rank]


class Loader:
    """Endless training batches from any step on.

    Args:
        images: training set.
        augment: augmentation.
        batch: global batch size; an incomplete last batch of an epoch is dropped.
        seed: seed of the order and the augmentations.
        device: device of the batches, and of the pixels of sets in memory.
        share: this process's rows of each global batch.
        workers: number of processes that read files; sets in memory need none.
        max_bad: fraction of files that may become unreadable during a run.

    Raises:
        ConfigError: the batch exceeds the set, or the augmentation does not work on files.
    """

    def __init__(
        self,
        images: ImageSet,
        augment: Augment,
        batch: int,
        seed: int,
        device: torch.device,
        share: RankSlice | None = None,
        workers: int = 0,
        max_bad: float = 0.0,
    ):
        if batch > len(images):
            raise ConfigError("train.batch", batch, f"exceeds the {len(images)} training images; give at most that")
        if isinstance(images, (FileImages, StreamedImages)) and not augment.supports_files:
            name = type(augment).__name__
            raise ConfigError("augment", name, "works on small images held in memory; use another or data.store=memory")
        self.images, self.augment, self.batch, self.seed, self.device = images, augment, batch, seed, device
        self.share, self.workers, self.max_bad = share or RankSlice(), workers, max_bad
        self.steps_per_epoch = len(images) // batch
        self.steps_at_once = 1 if device.type == "cpu" else STEPS_AT_ONCE

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Yield this process's rows of the global batches at steps start, start + 1, ..."""
        if isinstance(self.images, MemoryImages):
            yield from self._from_memory(self.images, start)
        elif isinstance(self.images, LatentImages):
            yield from self._from_latents(self.images, start)
        elif isinstance(self.images, StreamedImages):
            yield from self._from_stream(self.images, start)
        else:
            assert isinstance(self.images, FileImages)
            yield from self._from_files(self.images, start)

    def _indices(self, start: int, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """Yield (epoch, index of this process's images) of each step; one copy to the device per epoch."""
        step, order, current = start, None, -1
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != current or order is None:
                order, current = self.images.order(self.seed, epoch).to(device), epoch
            yield epoch, self.share.of(order[position * self.batch : (position + 1) * self.batch])
            step += 1

    def _from_memory(self, images: MemoryImages, start: int) -> Iterator[Batch]:
        pixels, labels = images.pixels.to(self.device), torch.from_numpy(images.labels).to(self.device)
        for index, u in self._draws(start):
            batch = pixels[index]  # (B, 3 or 4, H, W)
            if self.augment.keeps_values:
                batch = self.augment(batch, u).float().div_(255)
            else:
                batch = self.augment(batch.float().div_(255), u)
            yield _split_masks(batch, labels[index], index)

    def _draws(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (index, uniform numbers of the augmentation (B, n)) of each step, on the device."""
        steps = self._indices(start, self.device)
        while True:
            some = list(itertools.islice(steps, self.steps_at_once))
            for epoch, pairs in itertools.groupby(some, key=lambda pair: pair[0]):
                indices = [index for _, index in pairs]
                u = uniforms(self.seed, epoch, torch.cat(indices), self.augment.n)
                yield from zip(indices, u.split([len(index) for index in indices]), strict=True)

    def _from_latents(self, images: LatentImages, start: int) -> Iterator[Batch]:
        labels = torch.from_numpy(images.labels)
        for _, index in self._indices(start):
            empty = torch.empty(len(index), 3, 0, 0, device=self.device)
            latents, classes, index = (_move(x, self.device) for x in (images.rows(index), labels[index], index))
            yield Batch(empty, classes, index, latents)

    def _from_files(self, images: FileImages, start: int) -> Iterator[Batch]:
        keys = ([(epoch, int(i)) for i in index] for epoch, index in self._indices(start))
        bad: set[int] = set()
        size = -(-self.batch // self.share.world)
        batches = file_batches(images, self.augment, self.seed, keys, size, self.workers, self.device)
        for pixels, index, expected in batches:
            bad.update(expected[expected != index].tolist())
            if len(bad) > self.max_bad * len(images):
                names = ", ".join(images.name(i) for i in sorted(bad)[:3])
                raise DataError(f"{len(bad)} images have become unreadable, more than data.max_bad: {names}")
            yield _to_batch(pixels, index, images, self.device)

    def _from_stream(self, images: StreamedImages, start: int) -> Iterator[Batch]:
        steps, cropper = self._stream_steps(images, start), Cropper(self.augment, self.seed)
        for pixels, index in stream_batches(steps, cropper, images.size, self.workers, images.bands):
            yield _to_batch(pixels, index, images, self.device)

    def _stream_steps(self, images: StreamedImages, start: int) -> Iterator[tuple[int, Tensor, list[bytes]]]:
        """Yield (epoch, index, bytes of the images) of each step."""
        buffer, current = WindowBuffer(iter(())), -1
        for step, (epoch, index) in enumerate(self._indices(start), start):
            if epoch != current:
                position = step % self.steps_per_epoch * self.batch
                buffer, current = WindowBuffer(images.windows(images.order(self.seed, epoch), position)), epoch
            yield epoch, index, buffer.take(index)


def in_order(
    images: ImageSet, batch: int, device: torch.device, workers: int = 0, poll: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """Yield the centre crop of every image once, in the order of the set; the last batch may be smaller."""
    for pixels, index in _pixel_batches(images, batch, device, workers):
        poll()
        yield _to_batch(pixels, index, images, device)


def bytes_in_order(
    images: ImageSet, batch: int, device: torch.device, workers: int = 0, poll: Callable[[], None] = lambda: None
) -> Iterator[Tensor]:
    """Yield the pixels of `in_order` as they are stored, (B, 3, H, W) uint8 on the device."""
    for pixels, _ in _pixel_batches(images, batch, device, workers):
        poll()
        yield _move(pixels[:, :3], device)


def _pixel_batches(images: ImageSet, batch: int, device: torch.device, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pixels (B, C, H, W) uint8, index) of each batch, in the order of the set."""
    positions = torch.from_numpy(np.asarray(images.ids)).split(batch)
    if isinstance(images, MemoryImages):
        yield from ((images.pixels[index], index) for index in positions)
    elif isinstance(images, StreamedImages):
        buffer = WindowBuffer(images.windows(torch.from_numpy(images.ids), 0))
        steps = ((0, index, buffer.take(index)) for index in positions)
        yield from stream_batches(steps, Cropper(Centre(), 0), images.size, workers, images.bands)
    else:
        assert isinstance(images, FileImages)
        keys = [[(0, int(i)) for i in index] for index in positions]
        for pixels, index, expected in file_batches(images, Centre(), 0, keys, len(positions[0]), workers, device):
            if (expected != index).any():
                name = images.name(int(expected[expected != index][0]))
                raise DataError(f"{images.root / name} has become unreadable")
            yield pixels, index


def _to_batch(pixels: Tensor, index: Tensor, images: ImageSet, device: torch.device) -> Batch:
    labels = torch.from_numpy(images.labels)[index]
    return _split_masks(_move(pixels, device).float().div_(255), _move(labels, device), _move(index, device))


def _move(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, without waiting for a GPU: only copies of pinned memory do not wait."""
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _split_masks(floats: Tensor, labels: Tensor, index: Tensor) -> Batch:
    """Return the batch of pixels (B, 3 or 3 + K, H, W) in [0, 1]; the last K are masks, blurred by resizing."""
    images, masks = floats[:, :3], floats[:, 3:]
    if masks.shape[1] > 1:  # the class that covers most of a pixel, or none if half of it has none
        largest = torch.nn.functional.one_hot(masks.argmax(1), masks.shape[1]).movedim(-1, 1)
        masks = largest * (masks.sum(1, keepdim=True) > 0.5)
    return Batch(images, labels, index, masks=(masks > 0.5).float() if masks.shape[1] else None)

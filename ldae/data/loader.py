"""Batches in an order, and with augmentations, that are functions of (seed, epoch, index) alone.

The loader's whole state is the step: any process can begin at any step, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import ConfigError, DataError
from ldae.core.rng import uniforms
from ldae.core.types import Batch
from ldae.data.images import FileImages, ImageSet, LatentImages, MemoryImages
from ldae.data.reading import Cutter, file_batches, streamed
from ldae.data.streamed import Held, StreamedImages
from ldae.data.transforms import Augment, Centre


@dataclass(frozen=True)
class RankSlice:
    """Which rows of a global batch this process works on."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """This process's consecutive rows."""
        return rows.chunk(self.world)[self.rank]


class Loader:
    """Endless training batches from any step on.

    Args:
        images: what to train on.
        augment: crop and flip.
        batch: images of a step over all processes; the last, incomplete batch of an epoch is left out.
        seed: of the order and the augmentations.
        device: where batches are delivered; small sets live there.
        share: this process's part of each batch.
        workers: processes that read files; small sets need none.
        max_bad: share of files that may turn unreadable in the course of a run.

    Raises:
        ConfigError: the batch exceeds the set, or the augmentation cannot be cut from files.
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
        if isinstance(images, (FileImages, StreamedImages)) and not augment.streams:
            kind = type(augment).__name__
            raise ConfigError("augment", kind, "works on small images held in memory; use another or data.store=memory")
        self.images, self.augment, self.batch, self.seed, self.device = images, augment, batch, seed, device
        self.share, self.workers, self.max_bad = share or RankSlice(), workers, max_bad
        self.steps_per_epoch = len(images) // batch

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's rows of the global batches at steps start, start + 1, ..."""
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
        """(epoch, index of this process's images) for each step; an epoch's order goes to the device at once."""
        step, order, known = start, None, -1
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != known or order is None:
                order, known = self.images.order(self.seed, epoch).to(device), epoch
            yield epoch, self.share.of(order[position * self.batch : (position + 1) * self.batch])
            step += 1

    def _from_memory(self, images: MemoryImages, start: int) -> Iterator[Batch]:
        pixels, labels = images.pixels.to(self.device), torch.from_numpy(images.labels).to(self.device)
        for epoch, index in self._indices(start, self.device):
            found, u = pixels[index], uniforms(self.seed, epoch, index, self.augment.n)  # (B, 3 or 4, H, W)
            if self.augment.moves:
                found = self.augment(found, u).float().div_(255)
            else:
                found = self.augment(found.float().div_(255), u)
            yield _batch(found, labels[index], index)

    def _from_latents(self, images: LatentImages, start: int) -> Iterator[Batch]:
        labels = torch.from_numpy(images.labels)
        for _, index in self._indices(start):
            latents, empty = images.rows(index).to(self.device), torch.empty(len(index), 3, 0, 0, device=self.device)
            yield Batch(empty, labels[index].to(self.device), index.to(self.device), latents)

    def _from_files(self, images: FileImages, start: int) -> Iterator[Batch]:
        keys = ([(epoch, int(i)) for i in index] for epoch, index in self._indices(start))
        bad: set[int] = set()
        size = -(-self.batch // self.share.world)
        found = file_batches(images, self.augment, self.seed, keys, size, self.workers, self.device)
        for pixels, index, requested in found:
            bad.update(requested[requested != index].tolist())
            if len(bad) > self.max_bad * len(images):
                names = ", ".join(images.name(i) for i in sorted(bad)[:3])
                raise DataError(f"{len(bad)} images have become unreadable, more than data.max_bad: {names}")
            yield _delivered(pixels, index, images, self.device)

    def _from_stream(self, images: StreamedImages, start: int) -> Iterator[Batch]:
        cutter = Cutter(self.augment, self.seed)
        for pixels, index in streamed(self._streamed(images, start), cutter, images.size, self.workers, images.bands):
            yield _delivered(pixels, index, images, self.device)

    def _streamed(self, images: StreamedImages, start: int) -> Iterator[tuple[int, Tensor, list[bytes]]]:
        """(epoch, index, bytes) for each step."""
        held, known = Held(iter(())), -1
        for step, (epoch, index) in enumerate(self._indices(start), start):
            if epoch != known:
                begin = step % self.steps_per_epoch * self.batch
                held, known = Held(images.windows(images.order(self.seed, epoch), begin)), epoch
            yield epoch, index, held.take(index)


def in_order(
    images: ImageSet, batch: int, device: torch.device, workers: int = 0, poll: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """Every image once, centre crop, in the set's order; the last batch may be smaller."""
    positions = torch.from_numpy(np.asarray(images.ids)).split(batch)
    for pixels, index in _squares(images, positions, device, workers):
        poll()
        yield _delivered(pixels, index, images, device)


def _squares(
    images: ImageSet, positions: Sequence[Tensor], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(pixels (B, C, H, W) uint8, index) of each part of a set's ids."""
    if isinstance(images, MemoryImages):
        yield from ((images.pixels[index], index) for index in positions)
    elif isinstance(images, StreamedImages):
        held = Held(images.windows(torch.from_numpy(images.ids), 0))
        steps = ((0, index, held.take(index)) for index in positions)
        yield from streamed(steps, Cutter(Centre(), 0), images.size, workers, images.bands)
    else:
        assert isinstance(images, FileImages)
        keys = [[(0, int(i)) for i in index] for index in positions]
        for pixels, index, requested in file_batches(images, Centre(), 0, keys, len(positions[0]), workers, device):
            if (requested != index).any():
                name = images.name(int(requested[requested != index][0]))
                raise DataError(f"{images.root / name} has become unreadable")
            yield pixels, index


def _delivered(pixels: Tensor, index: Tensor, images: ImageSet, device: torch.device) -> Batch:
    labels = torch.from_numpy(images.labels)[index]
    move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
    return _batch(move(pixels).float().div_(255), move(labels), move(index))


def _batch(floats: Tensor, labels: Tensor, index: Tensor) -> Batch:
    """Of pixels (B, 3 or 4, H, W) in [0, 1]; a fourth channel is the mask, which a resize has blurred."""
    images, figure = floats[:, :3], floats[:, 3:]
    return Batch(images, labels, index, masks=(figure > 0.5).float() if figure.shape[1] else None)

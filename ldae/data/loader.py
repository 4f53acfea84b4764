"""Batches in an order, and with augmentations, that are functions of (seed, epoch, index) alone.

The loader's whole state is the step: any process can begin at any step, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldae.counter import permutation, uniforms
from ldae.data.cache import ignore_signals
from ldae.data.decode import BadImage, cut_and_resized, read_rgb
from ldae.data.images import FileImages, ImageSet, LatentImages, MemoryImages
from ldae.data.transforms import Augment, Centre
from ldae.errors import ConfigError, DataError
from ldae.types import Batch

ATTEMPTS = 64


@dataclass(frozen=True)
class Share:
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
        share: Share | None = None,
        workers: int = 0,
        max_bad: float = 0.0,
    ):
        if batch > len(images):
            raise ConfigError("train.batch", batch, f"exceeds the {len(images)} training images")
        if isinstance(images, FileImages) and not augment.streams:
            kind = type(augment).__name__
            raise ConfigError("augment", kind, "works on small images held in memory; use another or data.store=memory")
        self.images, self.augment, self.batch, self.seed, self.device = images, augment, batch, seed, device
        self.share, self.workers, self.max_bad = share or Share(), workers, max_bad
        self.steps_per_epoch = len(images) // batch

    def batches(self, start: int) -> Iterator[Batch]:
        """This process's rows of the global batches at steps start, start + 1, ..."""
        if isinstance(self.images, MemoryImages):
            yield from self._from_memory(self.images, start)
        elif isinstance(self.images, LatentImages):
            yield from self._from_latents(self.images, start)
        else:
            assert isinstance(self.images, FileImages)
            yield from self._from_files(self.images, start)

    def _indices(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """(epoch, index of this process's images) for each step."""
        ids, step, order, known = torch.from_numpy(self.images.ids), start, None, -1
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != known or order is None:
                order, known = ids[permutation(self.seed, epoch, len(ids))], epoch
            yield epoch, self.share.of(order[position * self.batch : (position + 1) * self.batch])
            step += 1

    def _from_memory(self, images: MemoryImages, start: int) -> Iterator[Batch]:
        pixels, labels = images.pixels.to(self.device), torch.from_numpy(images.labels).to(self.device)
        for epoch, index in self._indices(start):
            index = index.to(self.device)
            floats = pixels[index].float() / 255  # (B, 3 or 4, H, W)
            u = uniforms(self.seed, epoch, index, self.augment.n)
            yield _batch(self.augment(floats, u), labels[index], index)

    def _from_latents(self, images: LatentImages, start: int) -> Iterator[Batch]:
        labels = torch.from_numpy(images.labels)
        for _, index in self._indices(start):
            latents, empty = images.rows(index).to(self.device), torch.empty(len(index), 3, 0, 0, device=self.device)
            yield Batch(empty, labels[index].to(self.device), index.to(self.device), latents)

    def _from_files(self, images: FileImages, start: int) -> Iterator[Batch]:
        keys = ([(epoch, int(i)) for i in index] for epoch, index in self._indices(start))
        loader = _data_loader(_Files(images, self.augment, self.seed), keys, self.workers, self.device)
        bad: set[int] = set()
        for pixels, index, wanted in loader:
            bad.update(wanted[wanted != index].tolist())
            if len(bad) > self.max_bad * len(images):
                names = ", ".join(images.name(i) for i in sorted(bad)[:3])
                raise DataError(f"{len(bad)} images have become unreadable, more than data.max_bad: {names}")
            yield _delivered(pixels, index, images, self.device)


def in_order(
    images: ImageSet, batch: int, device: torch.device, workers: int = 0, poll: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """Every image once, centre crop, in the set's order; the last batch may be smaller."""
    positions = torch.from_numpy(np.asarray(images.ids)).split(batch)
    if isinstance(images, MemoryImages):
        for index in positions:
            poll()
            yield _delivered(images.pixels[index], index, images, device)
        return
    assert isinstance(images, FileImages)
    keys = [[(0, int(i)) for i in index] for index in positions]
    for pixels, index, wanted in _data_loader(_Files(images, Centre(), 0), keys, workers, device):
        poll()
        if (wanted != index).any():
            name = images.name(int(wanted[wanted != index][0]))
            raise DataError(f"{images.root / name} has become unreadable")
        yield _delivered(pixels, index, images, device)


def _delivered(pixels: Tensor, index: Tensor, images: ImageSet, device: torch.device) -> Batch:
    labels = torch.from_numpy(images.labels)[index]
    move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
    return _batch(move(pixels).float() / 255, move(labels), move(index))


def _batch(floats: Tensor, labels: Tensor, index: Tensor) -> Batch:
    """Of pixels (B, 3 or 4, H, W) in [0, 1]; a fourth channel is the mask, which a resize has blurred."""
    images, figure = floats[:, :3], floats[:, 3:]
    return Batch(images, labels, index, masks=(figure > 0.5).float() if figure.shape[1] else None)


def _data_loader(files: _Files, keys: Any, workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        files,
        batch_sampler=keys,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


class _Files(Dataset):
    """(epoch, index) -> (pixels (3, H, W) uint8, index, index asked for); an unreadable file gives way to the next."""

    def __init__(self, images: FileImages, augment: Augment, seed: int):
        self.images, self.augment, self.seed = images, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, wanted = key
        place = int(np.searchsorted(self.images.ids, wanted))
        for offset in range(ATTEMPTS):
            index = int(self.images.ids[(place + offset) % len(self.images)])
            try:
                return self._cut(epoch, index), index, wanted
            except BadImage:
                continue
        raise DataError(f"{ATTEMPTS} images in a row from {self.images.name(wanted)} on are unreadable")

    def _cut(self, epoch: int, index: int) -> Tensor:
        image = read_rgb(self.images.source(index), max_pixels=1 << 62)
        u = uniforms(self.seed, epoch, torch.tensor([index]), self.augment.n)
        sizes = torch.tensor([image.height]), torch.tensor([image.width])
        image = cut_and_resized(image, self.augment.boxes(u, *sizes)[0].long().tolist(), self.images.size)
        if bool(self.augment.flips(u)[0]):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = self.augment.finish(image, u[0])
        return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)

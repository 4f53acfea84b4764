"""Images in shards without random access, shuffled in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import DataError
from ldae.core.rng import permutation, uniforms
from ldae.data.decode import DEFAULT_BANDS, Bands
from ldae.data.images import ImageSet

# (shard, number of rows to skip) -> bytes of the shard's other images
Shards = Callable[[int, int], Iterable[bytes]]


class StreamedImages(ImageSet):
    """Images that are read shard by shard, with a window of some thousands in memory.

    An epoch reads the shards in a random order, and shuffles every `window` consecutive images. The order is a
    function of (seed, epoch), so that any process can start at any step.

    Args: as ImageSet, with names SHARD/ROW, and
        shards: function that reads a shard.
        window: number of images that are shuffled together, and held in memory.
        bands: mapping from the bands of a file to RGB.
    """

    def __init__(
        self,
        root: Path,
        names: np.ndarray,
        labels: np.ndarray,
        size: int,
        shards: Shards,
        window: int,
        ids: np.ndarray | None = None,
        bands: Bands = DEFAULT_BANDS,
    ):
        super().__init__(root, names, labels, size, ids)
        self.shards, self.window, self.bands = shards, window, bands
        self.positions = np.array([[int(n) for n in name.split(b"/")] for name in names], np.int64).reshape(-1, 2)

    def subset(self, chosen: np.ndarray) -> StreamedImages:
        """Return the images at positions `chosen`, (n,) int64."""
        ids = self.ids[chosen]
        return StreamedImages(self.root, self.names, self.labels, self.size, self.shards, self.window, ids, self.bands)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the ids in the order of an epoch, (N,) int64: random shards, images shuffled within windows."""
        read = self._reading_order(seed, epoch)
        keys = uniforms(seed, epoch, torch.from_numpy(self.ids), 1)[:, 0].numpy()
        shuffled = np.lexsort((keys[read], np.arange(len(read)) // self.window))  # by window, then by random key
        return torch.from_numpy(self.ids[read[shuffled]])

    def _reading_order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the positions in `ids` in the order in which an epoch reads the shards, (N,) int64."""
        shard = self.positions[self.ids, 0]
        rank = permutation(seed, epoch, 1 + int(shard.max())).argsort().numpy()  # of each shard
        return np.argsort(rank[shard], kind="stable")

    def windows(self, order: Tensor, start: int) -> Iterator[dict[int, bytes]]:
        """Yield {id: bytes} of each window of an order, from the window with position `start` on.

        Args:
            order: (N,) ids in the order of an epoch, or `ids`.
            start: position in `order`.

        Raises:
            DataError: a shard has fewer images than its listing.
        """
        readers = dict[int, ShardReader]()
        for first in range(start - start % self.window, len(order), self.window):
            yield dict(self._read(order[first : first + self.window].numpy(), readers))

    def _read(self, ids: np.ndarray, readers: dict[int, ShardReader]) -> Iterator[tuple[int, bytes]]:
        """Yield (id, bytes) of images, shard by shard and row by row."""
        shard, row = self.positions[ids].T
        for k in np.unique(shard).tolist():
            members = np.argsort(np.where(shard == k, row, np.iinfo(np.int64).max))[: (shard == k).sum()]
            first = int(row[members[0]])
            if k not in readers or readers[k].row > first:
                readers[k] = ShardReader(self.shards, k, first)
            for i in members:
                yield int(ids[i]), readers[k].read(int(row[i]))


class WindowBuffer:
    """Buffer of the windows that contain the images of a batch.

    Args:
        windows: {id: bytes} of consecutive windows, see `StreamedImages.windows`.
    """

    def __init__(self, windows: Iterator[dict[int, bytes]]):
        self.windows, self.last = windows, dict[int, bytes]()

    def take(self, index: Tensor) -> list[bytes]:
        """Return the bytes of the images in `index`, which follow those of earlier calls in the order."""
        contents, ids = dict(self.last), index.tolist()
        while any(i not in contents for i in ids):
            self.last = next(self.windows)
            contents |= self.last
        return [contents[i] for i in ids]


class ShardReader:
    """Sequential reader of a shard from a row on.

    Attributes:
        row: number of the next row.
    """

    def __init__(self, shards: Shards, shard: int, row: int):
        self.shard, self.row, self.rest = shard, row, iter(shards(shard, row))

    def read(self, row: int) -> bytes:
        """Return the bytes of a row, at or after the next one."""
        while True:
            content = next(self.rest, None)
            if content is None:
                raise DataError(f"shard {self.shard} of the stream has {self.row} images, fewer than it had")
            self.row += 1
            if self.row > row:
                return content

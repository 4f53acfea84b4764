"""Images that come as a stream of shards, each of which can only be read from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.core.errors import DataError
from ldae.core.rng import permutation, uniforms
from ldae.data.decode import PLAIN, Bands
from ldae.data.images import ImageSet

# (shard, rows to leave out at its beginning) -> the bytes of its images from there on
Shards = Callable[[int, int], Iterable[bytes]]


class StreamedImages(ImageSet):
    """Images of which some thousands at a time are held in memory.

    An epoch goes through the shards in a random order and, within every `window` images that follow each other so,
    through these in a random order: a function of (seed, epoch), so that any process can begin at any step.

    Args: as ImageSet, names SHARD/ROW, and
        shards: reads them.
        window: images that are mixed, and held in memory.
        bands: how a file's numbers become colours.
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
        bands: Bands = PLAIN,
    ):
        super().__init__(root, names, labels, size, ids)
        self.shards, self.window, self.bands = shards, window, bands
        self.places = np.array([[int(n) for n in name.split(b"/")] for name in names], np.int64).reshape(-1, 2)

    def subset(self, chosen: np.ndarray) -> StreamedImages:
        ids = self.ids[chosen]
        return StreamedImages(self.root, self.names, self.labels, self.size, self.shards, self.window, ids, self.bands)

    def order(self, seed: int, epoch: int) -> Tensor:
        read, keys = self._as_read(seed, epoch), uniforms(seed, epoch, torch.from_numpy(self.ids), 1)[:, 0].numpy()
        return torch.from_numpy(self.ids[read[np.lexsort((keys[read], np.arange(len(read)) // self.window))]])

    def _as_read(self, seed: int, epoch: int) -> np.ndarray:
        """Positions in `ids`, in the order in which an epoch's shards bring them."""
        shard = self.places[self.ids, 0]
        place = permutation(seed, epoch, 1 + int(shard.max())).argsort().numpy()  # of each shard
        return np.argsort(place[shard], kind="stable")

    def windows(self, order: Tensor, start: int) -> Iterator[dict[int, bytes]]:
        """The bytes by id of an order's windows, from the one on that holds position `start`.

        Args:
            order: (N,) ids; as `order` gives it, or `ids` themselves.

        Raises:
            DataError: a shard has fewer images than it had.
        """
        cursors = dict[int, Cursor]()
        for first in range(start - start % self.window, len(order), self.window):
            yield dict(self._read(order[first : first + self.window].numpy(), cursors))

    def _read(self, ids: np.ndarray, cursors: dict[int, Cursor]) -> Iterator[tuple[int, bytes]]:
        shard, row = self.places[ids].T
        for one in np.unique(shard).tolist():
            mine = np.argsort(np.where(shard == one, row, np.iinfo(np.int64).max))[: (shard == one).sum()]
            first = int(row[mine[0]])
            if one not in cursors or cursors[one].row > first:
                cursors[one] = Cursor(self.shards, one, first)
            for i in mine:
                yield int(ids[i]), cursors[one].at(int(row[i]))


class Held:
    """Gives out what windows bring, in their order; holds those that a batch lies in.

    Args:
        windows: as `StreamedImages.windows` reads them.
    """

    def __init__(self, windows: Iterator[dict[int, bytes]]):
        self.windows, self.last = windows, dict[int, bytes]()

    def take(self, index: Tensor) -> list[bytes]:
        """The bytes of some images; later calls ask for later ones."""
        held, requested = dict(self.last), index.tolist()
        while any(i not in held for i in requested):
            self.last = next(self.windows)
            held |= self.last
        return [held[i] for i in requested]


class Cursor:
    """Reads a shard from a row on, forwards.

    Attributes:
        row: that comes next.
    """

    def __init__(self, shards: Shards, shard: int, row: int):
        self.shard, self.row, self.rest = shard, row, iter(shards(shard, row))

    def at(self, row: int) -> bytes:
        """The bytes of a row that was not passed yet."""
        while True:
            content = next(self.rest, None)
            if content is None:
                raise DataError(f"shard {self.shard} of the stream has {self.row} images, fewer than it had")
            self.row += 1
            if self.row > row:
                return content

"""What protocols are given features by: read once and kept, or encoded anew under augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from linear_probe.features import Cell, Features
from linear_probe.subsets import Part

# features of a batch at every cell, {cell: (B, D)}, and its labels (B,)
Encoded = tuple[Mapping[Cell, Tensor], Tensor]


class Source(Protocol):
    """Features of one encoder.

    Attributes:
        cells: columns among which a protocol chooses.
    """

    @property
    def cells(self) -> Sequence[Cell]: ...

    def features(self, part: Part, cell: Cell) -> Features:
        """Features of the images of a part, as they are."""

    def count(self, parts: Sequence[Part]) -> int:
        """How many images the parts have."""

    def stream(
        self, parts: Sequence[Part], cells: Sequence[Cell], augment: str, batch: int, seed: int
    ) -> Iterator[Encoded]:
        """Batches of augmented images of all the parts together without end, each epoch in an order of its own.

        An image looks different in every epoch. The last, incomplete batch of an epoch is left out.

        Args:
            augment: name of the augmentation.
            batch: images of a batch.
            seed: of order and augmentation.
        """

"""Pixels in [-1, 1] as they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ldae.tokenizers.base import Tokenizer


class Identity(Tokenizer):
    """z = x: no patches, no mean taken off, scale 1 (the space of DDPM, arXiv 2006.11239). Fitted from the start.

    Args:
        image_shape: (C, H, W).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(image_shape, image_shape, "one")
        self.fitted.fill_(True)

    @property
    def bounded(self) -> bool:
        return True

    def to_raw(self, x: Tensor) -> Tensor:
        return x

    def from_raw(self, raw: Tensor) -> Tensor:
        return raw

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Nothing to fit."""

"""Which patches of each image are hidden, and tokens sorted accordingly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldae.core.types import expand


@dataclass(frozen=True)
class Masking:
    """A random order of each image's N patches; the first `kept` of it are seen (Sec. 3, arXiv 2111.06377).

    Attributes:
        order: (B, N) int64, a permutation of 0..N-1 in each row.
        kept: how many patches of an image are seen; as many for every image, so that they make one tensor.
    """

    order: Tensor
    kept: int

    @classmethod
    def drawn(cls, noise: Tensor, ratio: float) -> Masking:
        """Hides the patches whose noise is highest.

        Args:
            noise: (B, N) independent uniform numbers.
            ratio: share of the patches to hide.
        """
        return cls(noise.argsort(dim=1), kept_of(noise.shape[1], ratio))

    @property
    def rank(self) -> Tensor:
        """(B, N): the place of each patch in the order, the inverse permutation."""
        return self.order.argsort(dim=1)

    @property
    def hidden(self) -> Tensor:
        """(B, N) bool."""
        return self.rank >= self.kept

    def seen(self, tokens: Tensor) -> Tensor:
        """Of (B, N, D), those of the seen patches, in the order: (B, kept, D)."""
        return _taken(tokens, self.order[:, : self.kept])

    def restored(self, tokens: Tensor) -> Tensor:
        """(B, N, D) in the order -> (B, N, D) row by row."""
        return _taken(tokens, self.rank)


def kept_of(count: int, ratio: float) -> int:
    """How many of `count` patches are seen when a share `ratio` is hidden: floor(count (1 - ratio))."""
    return int(count * (1 - ratio))


def _taken(tokens: Tensor, which: Tensor) -> Tensor:
    """tokens (B, N, D), which (B, M) -> (B, M, D)."""
    image = torch.arange(len(tokens), device=tokens.device)
    return tokens[expand(image, which), which]

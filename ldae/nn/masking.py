"""Random masking of patches (Sec. 3, arXiv 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldae.core.types import expand


@dataclass(frozen=True)
class Masking:
    """Random order of each image's N patches, of which the first `num_visible` are visible and the others masked.

    Attributes:
        order: (B, N) int64, a permutation of 0..N-1 in each row.
        num_visible: number of visible patches, the same for every image of a batch.
    """

    order: Tensor
    num_visible: int

    @classmethod
    def from_noise(cls, noise: Tensor, ratio: float) -> Masking:
        """Mask the patches with the highest noise.

        Args:
            noise: (B, N) independent uniform numbers.
            ratio: fraction of masked patches, in [0, 1].
        """
        return cls(noise.argsort(dim=1), count_visible(noise.shape[1], ratio))

    @property
    def rank(self) -> Tensor:
        """Return the rank of each patch in the order, the inverse permutation, (B, N) int64."""
        return self.order.argsort(dim=1)

    @property
    def mask(self) -> Tensor:
        """Return whether each patch is masked, (B, N) bool."""
        return self.rank >= self.num_visible

    def gather_visible(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the visible patches in the random order, (B, N, D) -> (B, num_visible, D)."""
        return _gather(tokens, self.order[:, : self.num_visible])

    def restore_order(self, tokens: Tensor) -> Tensor:
        """Return tokens in the random order, (B, N, D), in the order of the patches, (B, N, D)."""
        return _gather(tokens, self.rank)


def count_visible(count: int, ratio: float) -> int:
    """Return the number of visible patches among `count` at a masking ratio: floor(count (1 - ratio))."""
    return int(count * (1 - ratio))


def _gather(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens (B, N, D) at positions (B, M), (B, M, D)."""
    image = torch.arange(len(tokens), device=tokens.device)
    return tokens[expand(image, positions), positions]

"""What every task promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ldae.types import Batch, Cond


class Task(ABC):
    """batch -> (x0, cond)."""

    @abstractmethod
    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        """x0 (B, 3, H, W) in [-1, 1] and what the denoiser is told."""

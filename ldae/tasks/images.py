"""Images as they are, labels unseen."""

from __future__ import annotations

from torch import Tensor

from ldae.tasks.base import Task
from ldae.types import Batch, Cond


class Images(Task):
    """x0 = 2 image - 1, no condition: all of self-supervised l-DAE."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Cond]:
        return 2 * batch.images - 1, Cond()

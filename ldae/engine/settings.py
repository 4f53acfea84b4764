"""Training settings: the keys of the config group `train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from ldae.core.errors import ConfigError
from ldae.core.types import Count, Fraction, NonNegative, Positive, Range
from ldae.engine.precision import PrecisionSetting


@dataclass(frozen=True)
class TrainSettings:
    """Length and settings of a training.

    Attributes:
        batch: global batch size, over all processes.
        steps, epochs: length of the training; one of the two.
        accumulate: number of parts of a process's batch for gradient accumulation.
        precision: precision of matrix products (ldae.engine.precision); weights, tokenizers and losses are fp32.
        clip: maximum norm of the gradient; 0 for no clipping.
        ema: decay of the average of the weights; 0 for none.
        compile: compile by torch.compile: each transformer block on a CPU, the whole network on a GPU.
        recompute: recompute the activations of a block in the backward pass: less memory, more time.
        shard: shard weights, gradients, moments and averages over processes (FSDP2), for networks that exceed the
            memory of one.
        log_every: steps between rows of metrics.jsonl.
        checkpoint_every: steps between checkpoints.
        keep: number of checkpoints to keep.
        slices: maximum number of slices of a batch with separate noise seeds; it is lowered to a divisor of `batch`.
            The number of processes times `accumulate` must divide it, so that the noise does not depend on them.
    """

    batch: Count
    steps: Annotated[int, Range(low=1, high=10**9)] | None = None
    epochs: Positive | None = None
    accumulate: Count = 1
    precision: PrecisionSetting = "auto"
    clip: NonNegative = 1.0
    ema: Fraction = 0.999
    compile: bool = False
    recompute: bool = False
    shard: bool = False
    log_every: Count = 10
    checkpoint_every: Count = 500
    keep: Count = 2
    slices: Count = 8

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(
                "steps", self.steps, f"with epochs={self.epochs}: give one of the two, null for the other"
            )
        if self.ema >= 1:
            raise ConfigError("ema", self.ema, "must be below 1")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the training in steps."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))

    def slices_of(self, world_size: int) -> int:
        """Return the number of slices of a global batch, each of which lies on one process.

        Raises:
            ConfigError: the processes and `accumulate` do not divide it.
        """
        slices = math.gcd(self.batch, self.slices)
        parts = world_size * self.accumulate
        if slices % parts:
            raise ConfigError(
                "train.batch",
                self.batch,
                f"cannot be shared by {world_size} processes x accumulate={self.accumulate}: that product must divide "
                f"both train.batch and train.slices={self.slices}",
            )
        return slices

"""How long and how to train: the keys of the config group `train`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ldae.core.errors import ConfigError
from ldae.core.types import Count, Fraction, NonNegative, Positive
from ldae.engine.precision import PrecisionSetting


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train.

    Attributes:
        batch: images of one step over all processes.
        steps, epochs: the length; one of the two.
        accumulate: parts that a process's share of a batch is worked through in.
        precision: of the networks' matrix products (ldae.engine.precision); weights, tokenizers and losses are fp32.
        clip: highest norm of the gradient; 0 for none.
        ema: decay of the weights' average; 0 for none.
        compile: whether torch.compile works on each transformer block.
        recompute: whether the activations within a block are computed again instead of kept: less memory, more time.
        shard: whether weights, gradients, moments and averages are divided among the processes (FSDP2), for networks
            that one of them cannot hold. One process alone divides nothing.
        log_every: steps between rows of metrics.jsonl.
        checkpoint_every: steps between checkpoints.
        keep: checkpoints that are kept.
        slices: slices of a batch with noise of their own (at most; the largest number that divides the batch).
            Processes times accumulate must divide it: then the noise is the same however the work is shared.
    """

    batch: Count
    steps: Count | None = None
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
        """The run's length in steps."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))

    def slices_of(self, world_size: int) -> int:
        """Slices of a global batch, each a part of one process's share.

        Raises:
            ConfigError: they cannot be shared out evenly.
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

"""End a training early, once a metric of an evaluation has not risen for some evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EarlyStop:
    """Rule that ends a training; a function of the rows of metrics.jsonl, so that a resumed run decides the same.

    Attributes:
        monitor: name of the evaluation, as in its rows.
        metric: name of the metric, which rises as the network improves.
        patience: number of evaluations without a new maximum after which the training ends.
        every: steps between evaluations.
    """

    monitor: str
    metric: str
    patience: int
    every: int

    def is_due(self, step: int) -> bool:
        """Return whether an evaluation precedes step number `step`, from 0, and counts: the one at the start does not.

        At its start a network whose blocks are the identity shows its patch embedding alone.
        """
        return step > 0 and step % self.every == 0

    def has_stalled(self, metrics: Path) -> bool:
        """Return whether the last `patience` evaluations in a file of metrics are not above an earlier one."""
        rows = map(json.loads, metrics.read_text().splitlines())
        values = [r[self.metric] for r in rows if r.get("monitor") == self.monitor and r["step"] > 0]
        return len(values) > self.patience and max(values[-self.patience :]) <= max(values[: -self.patience])

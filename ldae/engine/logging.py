"""Log of a training: metrics.jsonl, the loggers, and the progress report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldae.core.files import fsync, wrap_write_errors, write_text
from ldae.core.progress import Progress
from ldae.core.types import Metrics
from ldae.engine.loggers import numbers_of, open_loggers, to_pil
from ldae.engine.run_folder import RunFolder


class Meter:
    """Sums of metrics since the last row of the log, on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, prefix: str, metrics: Metrics) -> None:
        """Add (sum, count) pairs under names with a prefix."""
        for name, (total, count) in metrics.items():
            key = prefix + name
            old = self.sums.get(key)
            self.sums[key] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def take(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means over all processes, and reset the sums.

        Args:
            reduce_sum: sum of a tensor over all processes.

        Returns:
            {name: mean}; the entries of a vector are name/0, name/1, ...
        """
        averages: dict[str, float] = {}
        for name, (total, count) in sorted(self.sums.items()):
            means = reduce_sum(total) / reduce_sum(count)
            for i, mean in enumerate(means.flatten().tolist()):
                if not math.isnan(mean):  # 0 / 0: an entry without images
                    averages[name if means.ndim == 0 else f"{name}/{i}"] = mean
        self.sums = {}
        return averages


class RunLog:
    """Writer of metrics.jsonl, of numbers and pictures for the loggers, and of the progress report.

    Args:
        run: folder of the run.
        step: first step of this process; later rows of an earlier process are dropped.
        progress: progress report of the steps.
        loggers: names of ldae.engine.loggers.
        config: resolved config of the run, for the loggers.
    """

    def __init__(
        self,
        run: RunFolder,
        step: int,
        progress: Progress,
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        with wrap_write_errors(run.metrics):
            truncate_metrics(run.metrics, step)
            self.file = open(run.metrics, "a", buffering=1)
        self.loggers = open_loggers(loggers, run, step, config or {})
        self.progress, self.path = progress, run.metrics

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, and its numbers to the loggers."""
        with wrap_write_errors(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        if numbers := numbers_of(values):
            for logger in self.loggers:
                logger.scalars(numbers, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Write an image, (3, H, W) in [0, 1], to the loggers, and replace RUN/pictures/NAME.png by it."""
        for logger in self.loggers:
            logger.image(name, picture, step)
        path = self.path.parent / "pictures" / f"{name.replace('/', '-')}.png"
        with wrap_write_errors(path):
            path.parent.mkdir(exist_ok=True)
            save_png(path, picture)

    def advance(self, loss: float | None) -> None:
        """Count a step as done, and update the loss in the progress report if there is one."""
        if loss is not None:
            self.progress.show("loss", f"loss {loss:.4g}", first=True)
        self.progress.advance()

    def warn_of_rising_loss(self) -> None:
        """Print a warning if the mean loss of the last tenth of the rows is above that of the first tenth.

        There is no warning for fewer than 10 rows, or for several modules with losses of their own.
        """
        rows = map(json.loads, self.path.read_text().splitlines())
        losses = [row["loss"] for row in rows if "loss" in row]
        count = len(losses) // 10
        if not count:
            return
        first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
        if last > first:
            message = (
                f"warning: the loss ends at {last:.4g}, above {first:.4g} at its start (the last and the first tenth)"
            )
            print(f"{message}: the training failed; lower the learning rate", file=sys.stderr)

    def flush(self) -> None:
        """Flush the loggers to the operating system, and the rows of metrics.jsonl to disk."""
        with wrap_write_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            fsync(self.path.parent)
        for logger in self.loggers:
            logger.flush()

    def close(self) -> None:
        """Close all files and the progress report."""
        self.progress.close()
        with wrap_write_errors(self.path):
            self.file.close()
        with contextlib.ExitStack() as closing:  # all of them, also where one fails
            for logger in self.loggers:
                closing.callback(logger.close)


def save_png(path: Path, picture: Tensor) -> None:
    """Write an image, (3, H, W) or grey (1, H, W), in [0, 1], as PNG."""
    to_pil(picture).save(path)


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows of metrics.jsonl after `step` and an incomplete last line, which a resumed run writes again.

    A monitor's row (it has a key `monitor`) precedes the step of its number, a loss follows it. So the monitors' rows
    at `step` are dropped too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            continue
        if row["step"] < step or (row["step"] == step and "monitor" not in row):
            kept.append(line + "\n")
    write_text(path, "".join(kept))

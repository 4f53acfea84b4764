"""Logs of a training: metrics.jsonl, TensorBoard, and the progress report."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldae.core.files import fsync, wrap_write_errors, write_text
from ldae.core.progress import Progress
from ldae.core.types import Metrics
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
    """Writer of metrics.jsonl, of scalars and images for TensorBoard, and of the progress report.

    Args:
        run: folder of the run.
        step: first step of this process; later rows of an earlier process are dropped.
        progress: progress report of the steps.
    """

    def __init__(self, run: RunFolder, step: int, progress: Progress):
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = ignore_tensorboard_errors(self._hook)
        with wrap_write_errors(run.metrics):
            truncate_metrics(run.metrics, step)
            self.file = open(run.metrics, "a", buffering=1)
        with wrap_write_errors(run.tensorboard):
            self.board = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self.progress, self.path, self.events = progress, run.metrics, run.tensorboard

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, and its numbers to TensorBoard."""
        with wrap_write_errors(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        with wrap_write_errors(self.events):
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.board.add_scalar(name, value, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Write an image, (3, H, W) in [0, 1], to TensorBoard, and replace RUN/pictures/NAME.png by it."""
        with wrap_write_errors(self.events):
            self.board.add_image(name, picture, step)
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
        """Flush TensorBoard's events to the operating system, and the rows of metrics.jsonl to disk."""
        with wrap_write_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            fsync(self.path.parent)
        with wrap_write_errors(self.events):
            self.board.flush()

    def close(self) -> None:
        """Close all files and the progress report."""
        self.progress.close()
        with wrap_write_errors(self.path):
            self.file.close()
        with wrap_write_errors(self.events):
            self.board.close()
        threading.excepthook = self._hook


Hook = Callable[[threading.ExceptHookArgs], Any]


def ignore_tensorboard_errors(default: Hook) -> Hook:
    """Return an exception hook that ignores OSErrors in TensorBoard's thread, since its next call raises them too."""

    def hook(args: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_tensorboard and isinstance(args.exc_value, OSError)):
            default(args)

    return hook


def save_png(path: Path, picture: Tensor) -> None:
    """Write an image, (3, H, W) or grey (1, H, W), in [0, 1], as PNG."""
    from PIL import Image

    pixels = (picture.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
    Image.fromarray(pixels).save(path)


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

"""Write a training's figures: metrics.jsonl, TensorBoard, and how far it is."""

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
    """Sums of what players measured since the last report, kept on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, prefix: str, metrics: Metrics) -> None:
        """Takes in (sum, count) pairs."""
        for name, (total, count) in metrics.items():
            key = prefix + name
            old = self.sums.get(key)
            self.sums[key] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def take(self, summed: Any) -> dict[str, float]:
        """The means over all processes; vectors become name/0, name/1, ... . Starts anew."""
        found: dict[str, float] = {}
        for name, (total, count) in sorted(self.sums.items()):
            means = summed(total) / summed(count)
            for i, mean in enumerate(means.flatten().tolist()):
                if not math.isnan(mean):  # a bucket that met no image
                    found[name if means.ndim == 0 else f"{name}/{i}"] = mean
        self.sums = {}
        return found


class RunLog:
    """Write rows to metrics.jsonl and scalars and images to TensorBoard, and report the progress.

    Args:
        run: where to write.
        step: the step that this process begins at; later rows of an earlier process are dropped.
        progress: of the steps.
    """

    def __init__(self, run: RunFolder, step: int, progress: Progress):
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = quiet_about_board(self._hook)
        with wrap_write_errors(run.metrics):
            forget_after(run.metrics, step)
            self.file = open(run.metrics, "a", buffering=1)
        with wrap_write_errors(run.tensorboard):
            self.board = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self.progress, self.path, self.events = progress, run.metrics, run.tensorboard

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; its numbers also go to TensorBoard."""
        with wrap_write_errors(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        with wrap_write_errors(self.events):
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.board.add_scalar(name, value, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A (3, H, W) picture in [0, 1] to TensorBoard and to RUN/pictures/NAME.png (the newest)."""
        with wrap_write_errors(self.events):
            self.board.add_image(name, picture, step)
        path = self.path.parent / "pictures" / f"{name.replace('/', '-')}.png"
        with wrap_write_errors(path):
            path.parent.mkdir(exist_ok=True)
            save_png(path, picture)

    def advance(self, loss: float | None) -> None:
        """Count a step as done; show `loss` from now on if there is one."""
        if loss is not None:
            self.progress.show("loss", f"loss {loss:.4g}", first=True)
        self.progress.advance()

    def warn_of_rising_loss(self) -> None:
        """Print a warning if the mean loss of the last tenth of the rows is above that of the first tenth.

        Fewer than 10 rows are not judged, nor are trainings in which several modules have losses of their own.
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
            print(f"{message}: what was trained is worth nothing; lower the learning rate", file=sys.stderr)

    def flush(self) -> None:
        """Brings everything written so far to the disk; the rows, at least, to the disk itself."""
        with wrap_write_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            fsync(self.path.parent)
        with wrap_write_errors(self.events):
            self.board.flush()

    def close(self) -> None:
        """Write what is left."""
        self.progress.close()
        with wrap_write_errors(self.path):
            self.file.close()
        with wrap_write_errors(self.events):
            self.board.close()
        threading.excepthook = self._hook


Hook = Callable[[threading.ExceptHookArgs], Any]


def quiet_about_board(others: Hook) -> Hook:
    """Return a hook that prints no errors of TensorBoard's writing thread: the writer's next call raises them."""

    def hook(args: threading.ExceptHookArgs) -> None:
        own = type(args.thread).__module__.startswith("tensorboard.")
        if not (own and isinstance(args.exc_value, OSError)):
            others(args)

    return hook


def save_png(path: Path, picture: Tensor) -> None:
    """Writes a (3, H, W) or grey (1, H, W) picture in [0, 1]."""
    from PIL import Image

    pixels = (picture.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
    Image.fromarray(pixels).save(path)


def forget_after(path: Path, step: int) -> None:
    """Drops rows of metrics.jsonl beyond `step`, and a torn last line: a resumed run writes them again.

    A row of a monitor (it has a key `monitor`) is written before the step of its number, one of a loss after
    it; so the monitors' rows at `step` go too.
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

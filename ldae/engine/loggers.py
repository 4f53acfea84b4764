"""Loggers of a training beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, trackio.

The external ones continue the same run when a training resumes: their ids lie in RUN/loggers.json. Where they store or
send it is up to their own settings: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_DIR and the like.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import secrets
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.files import read_json, wrap_write_errors, write_json
from ldae.engine.run_folder import RunFolder, flatten

LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "ldae"  # of a run whose project the user's settings do not name
IDS = "loggers.json"


class Logger(ABC):
    """Destination of the numbers and pictures of a run.

    Args:
        run: folder of the run.
        step: first step of this process; later steps of an earlier process are logged again, with equal values.
        config: resolved config of the run.
    """

    @abstractmethod
    def __init__(self, run: RunFolder, step: int, config: Mapping[str, Any]): ...

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log finite numbers of a step."""

    @abstractmethod
    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture, (3, H, W) in [0, 1]."""

    def flush(self) -> None:  # noqa: B027
        """Hand everything to the operating system, before a checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """End the process's part of the run."""


class TensorBoard(Logger):
    """Events in RUN/tensorboard; a failed write ends the training."""

    def __init__(self, run: RunFolder, step: int, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = ignore_tensorboard_errors(self._hook)
        self.folder = run.tensorboard
        with wrap_write_errors(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write a scalar for each number."""
        with wrap_write_errors(self.folder):
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Write a picture."""
        with wrap_write_errors(self.folder):
            self.board.add_image(name, picture, step)

    def flush(self) -> None:
        """Flush the events to the operating system."""
        with wrap_write_errors(self.folder):
            self.board.flush()

    def close(self) -> None:
        """Close the files."""
        try:
            with wrap_write_errors(self.folder):
                self.board.close()
        finally:
            threading.excepthook = self._hook


class External(Logger):
    """Logger of another package, switched off with a warning where it fails: metrics.jsonl has all rows.

    Args:
        name: of the package.
        logger: its logger.
    """

    def __init__(self, name: str, logger: Logger):
        self.name, self.logger, self.is_on = name, logger, True

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._try(lambda: self.logger.scalars(values, step))

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture."""
        self._try(lambda: self.logger.image(name, picture, step))

    def close(self) -> None:
        """End the process's part of the run."""
        self._try(self.logger.close)

    def _try(self, call: Callable[[], None]) -> None:
        if not self.is_on:
            return
        try:
            call()
        except Exception as error:  # of many types: of the package, of the network
            self.is_on = False
            print(f"warning: {self.name} failed ({first_line(error)}) and is off from here on", file=sys.stderr)


class WeightsAndBiases(Logger):
    """Run of Weights & Biases with files in RUN/wandb; curves are drawn over `step`."""

    def __init__(self, run: RunFolder, step: int, config: Mapping[str, Any]):
        import wandb

        self.wandb = wandb
        with run_id(run, "wandb") as identity:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=identity,
                name=run.path.name,
                resume="allow",
                dir=str(run.path),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log({**values, "step": step})

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture."""
        self.run.log({name: self.wandb.Image(to_pil(picture)), "step": step})

    def close(self) -> None:
        """Finish the run; in offline mode its files stay in RUN/wandb for `wandb sync`."""
        self.run.finish()


class MLflow(Logger):
    """Run of MLflow: on the server or in the folder of MLFLOW_TRACKING_URI, else in RUN/mlflow.db."""

    BATCH = 100  # parameters in a call

    def __init__(self, run: RunFolder, step: int, config: Mapping[str, Any]):
        import mlflow
        from mlflow.entities import Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they report every table that they make
        store = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = mlflow.MlflowClient(store or f"sqlite:///{run.path.absolute() / 'mlflow.db'}")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.last: dict[str, int] = {}  # steps that an earlier process logged
        with run_id(run, "mlflow", make=lambda: self._create(experiment, run, store)) as self.id:
            self.client.update_run(self.id, status="RUNNING")
            self.is_resumed = step > 0
            known = self.client.get_run(self.id).data.params
            params = [Param(k, str(v)[:500]) for k, v in flatten(config) if k not in known]
            for start in range(0, len(params), self.BATCH):
                self.client.log_batch(self.id, params=params[start : start + self.BATCH])

    def _create(self, name: str, run: RunFolder, store: str | None) -> str:
        experiment = self.client.get_experiment_by_name(name)
        files = None if store else (run.path.absolute() / "mlartifacts").as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, files)
        identity: str = self.client.create_run(number, run_name=run.path.name).info.run_id
        return identity

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers; those that the process before a resumption logged already are left out."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        new = [Metric(k, v, now, step) for k, v in values.items() if step > self._last_step(k)]
        self.client.log_batch(self.id, metrics=new)

    def _last_step(self, name: str) -> int:
        if not self.is_resumed:
            return -1
        if name not in self.last:
            history = self.client.get_metric_history(self.id, name)
            self.last[name] = max((metric.step for metric in history), default=-1)
        return self.last[name]

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture."""
        self.client.log_image(self.id, to_pil(picture), artifact_file=f"pictures/{name}/step-{step:09d}.png")

    def close(self) -> None:
        """Mark the run as finished; a resumption opens it again."""
        self.client.set_terminated(self.id)


class Trackio(Logger):
    """Run of trackio, in its own folder (TRACKIO_DIR) or where its settings send it; `trackio show` draws it."""

    def __init__(self, run: RunFolder, step: int, config: Mapping[str, Any]):
        import trackio

        self.trackio = trackio
        with run_id(run, "trackio", make=lambda: f"{run.path.name}-{secrets.token_hex(3)}") as name:
            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=name,
                resume="allow",
                config={k: str(v) for k, v in flatten(config)},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log(dict(values), step=step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture."""
        self.run.log({name: self.trackio.Image(to_pil(picture))}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.trackio.finish()


LOGGERS: Mapping[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed; import none.

    Raises:
        ConfigError: one is not, or is named twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("loggers", list(names), "must name each once")
        if importlib.util.find_spec(name) is None:
            message = f"needs the package {name}, which is not installed: pip install 'ldae[{name}]'"
            raise ConfigError("loggers", name, message)


def open_loggers(names: Sequence[str], run: RunFolder, step: int, config: Mapping[str, Any]) -> list[Logger]:
    """Open loggers, and continue the external runs that an earlier process of the same run began.

    Raises:
        ConfigError: an external one cannot start.
        StorageError: TensorBoard's files cannot be written.
    """
    loggers: list[Logger] = []
    for name in names:
        if name == "tensorboard":
            loggers.append(TensorBoard(run, step, config))
            continue
        try:
            loggers.append(External(name, LOGGERS[name](run, step, config)))
        except Exception as error:  # of many types: of the package, of the network
            hint = "; log in (wandb login), or set WANDB_MODE=offline" if name == "wandb" else ""
            raise ConfigError("loggers", name, f"cannot start ({first_line(error)}){hint}") from error
    return loggers


@contextlib.contextmanager
def run_id(run: RunFolder, name: str, make: Callable[[], str] = lambda: secrets.token_hex(8)) -> Iterator[str]:
    """Yield the id of a run in RUN/loggers.json, or a new one, which is written when the block ends without error."""
    path: Path = run.path / IDS
    ids = read_json(path) if path.exists() else {}
    identity = ids[name] if name in ids else make()
    yield identity
    write_json(path, {**ids, name: identity})


def numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the values of a row."""
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def to_pil(picture: Tensor) -> Any:
    """Return a picture, (3, H, W) or grey (1, H, W), in [0, 1], as an image of Pillow."""
    from PIL import Image

    pixels = (picture.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
    return Image.fromarray(pixels)


Hook = Callable[[threading.ExceptHookArgs], Any]


def ignore_tensorboard_errors(default: Hook) -> Hook:
    """Return an exception hook that ignores OSErrors in TensorBoard's thread, since its next call raises them too."""

    def hook(args: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_tensorboard and isinstance(args.exc_value, OSError)):
            default(args)

    return hook

"""Open a session: device, threads, data, processes and run folder of a command."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldae.app.compose import user_cache
from ldae.app.precision import settle_precision
from ldae.config.build import Parts
from ldae.config.schema import conform, construct
from ldae.core.errors import ConfigError, DataError, Fault, Interrupted, OutputError
from ldae.core.files import remove_temporary, wrap_error
from ldae.core.progress import Mode, Progress
from ldae.core.rng import seed_of
from ldae.core.types import Count, Natural, Positive, PossiblyEmpty, Workers
from ldae.core.version import __version__
from ldae.data.cache import Context, cache_errors
from ldae.data.datasets import Dataset
from ldae.data.images import ImageSet, MemoryImages, Splits
from ldae.data.loader import Loader, RankSlice, bytes_in_order, in_order
from ldae.data.transforms import Augment
from ldae.diffusion.corruptions.base import Corruption
from ldae.diffusion.corruptions.blend import Blend
from ldae.engine.distributed import World, join_world, leave_world
from ldae.engine.loggers import LoggerName, check_loggers
from ldae.engine.run_folder import RunFolder
from ldae.engine.runtime import keep_freed_memory, resolve_device, set_threads
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.threads import AdaptiveThreads
from ldae.export.encoder import Run

READING = (
    "workers",
    "max_bad",
    "max_pixels",
    "channels",
    "range",
)  # keys of a data set that configure the reading of files


@dataclass(frozen=True)
class Runtime:
    """Device and thread settings; they do not change results beyond rounding.

    Attributes:
        threads: CPU threads of this process; 0 for torch's default, fewer while other processes keep cores busy.
        progress: draw progress bars; `auto` draws them on a terminal and prints lines elsewhere.
        timeout: seconds after which a process stops waiting for another one.
    """

    threads: Workers = 0
    progress: Literal["auto", True, False] = "auto"
    timeout: Positive = World.timeout

    def prepare(self) -> None:
        """Set allocator and threads. Call it before the first tensor exists."""
        keep_freed_memory()
        set_threads(self.threads)

    def adaptive_threads(self, device: str) -> AdaptiveThreads | None:
        """Return the controller of the number of threads; None if it is fixed, on a GPU, or with several processes."""
        is_fixed = self.threads or "OMP_NUM_THREADS" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
        return None if is_fixed or device != "cpu" else AdaptiveThreads()

    @property
    def progress_mode(self) -> Mode:
        """Return how long loops report progress: by a bar, by lines (`auto` without a terminal), or not at all."""
        return "bar" if self.bars else "lines" if self.progress == "auto" else "off"

    @property
    def bars(self) -> bool:
        """Return whether loops draw progress bars."""
        return sys.stderr.isatty() if self.progress == "auto" else bool(self.progress)


class Session:
    """Config, device and data of one call of a command.

    Args:
        config: resolved config of the command.
        saved: the config of the run on disk, if there is one.

    Attributes:
        config: the config with every `auto` precision replaced.
        precision: precision of the command; None if it has none.

    Raises:
        ConfigError: a key is invalid; nothing was read or written yet.
    """

    def __init__(self, config: Mapping[str, Any], saved: Mapping[str, Any] | None = None):
        for key in ("seed",):
            construct(_seeded, {key: config[key]}, {})
        if not isinstance(config["allow"], list):
            raise ConfigError("allow", config["allow"], "must be a list of keys, e.g. allow=[train.steps]")
        conform("data.classes", config["data"].get("classes"), Count | None)  # some networks have no classes
        self.runtime: Runtime = settings_of(config, "runtime", Runtime)
        self.device = resolve_device(str(config["device"]))
        self.config, self.precision = settle_precision({"version": __version__, **config}, saved)
        self.runtime.prepare()
        self.threads = self.runtime.adaptive_threads(self.device)
        self.seed: int = config["seed"]
        torch.manual_seed(seed_of(self.seed))  # seeds the initial weights
        self.parts = Parts(self.config)
        self.cache = user_cache(config["data"].get("cache"))
        self.stop = StopFlag()
        self.printed = set[str]()  # notes on the data that were printed
        self.world = World(torch.device(self.device))

    @contextlib.contextmanager
    def running(self, run: RunFolder) -> Iterator[None]:
        """Handle signals, join the other processes, lock the folder and write its status.

        The folder of a run that fails before its first step is removed. A signal ends the block where it arrives,
        except in training, which saves first.
        """
        with self.stop.listening():
            self.world = join_world(self.device, self.runtime.timeout)
            if self.world.main:
                run.acquire()
            try:
                with self.world.report_lost_processes(), self.stop.at_once():
                    if self.world.main:
                        self._clean()
                    yield
            except Exception as error:
                fault = wrap_error(error)
                if self.world.main:
                    run.set_failed(fault)
                    self._discard(run, fault)
                if isinstance(error, OSError):
                    raise fault from None
                raise
            finally:
                run.release()
                leave_world()

    def _clean(self) -> None:
        """Remove temporary files of killed processes from the cache."""
        for folder in self.cache.glob("*"):
            remove_temporary(folder)

    def _discard(self, run: RunFolder, fault: Fault) -> None:
        """Remove the folder of a run that failed before its first step; torchrun's exit code depends on its status."""
        if fault.code != Interrupted.code:
            with contextlib.suppress(OSError):
                run.discard_if_new(keep=("status.json",) if self.world.size > 1 else ())

    @property
    def progress(self) -> Mode:
        """Return how this process reports progress; only the main process does."""
        return self.runtime.progress_mode if self.world.main else "off"

    def splits(self, group: str = "data", labels_for: str = "") -> Splits:
        """Read the data set of a group (data, blend_dataset, outliers), and print warnings about it.

        Args:
            labels_for: the purpose that needs labels, e.g. "probing"; empty where none are needed.

        Raises:
            DataError: the images cannot be read, or have no labels and need them.
        """
        dataset: Dataset = getattr(self.parts, group)
        reading = {k: v for k, v in self.config[group].items() if k in READING}
        context = {"cache": self.cache, "poll": self.stop.poll, "progress": self.progress}
        try:
            with cache_errors(self.cache):
                splits = dataset.open(construct(Context, reading, context))
        except ConfigError as error:
            raise error.with_prefix(group) from None
        if labels_for and not splits.labelled:
            source = self.config[group].get("root") or dataset.name
            hint = dataset.label_hint
            raise DataError(f"data.root={source}: the images have no classes, and {labels_for} needs them; {hint}")
        if self.world.main:
            new = [note for note in splits.notes if note not in self.printed]
            print("".join(f"warning: {note}\n" for note in new), end="", file=sys.stderr)
            self.printed.update(new)
        if splits.bad and self.world.main:
            print(
                f"{len(splits.bad)} unreadable images left out, the first: {', '.join(splits.bad[0])}", file=sys.stderr
            )
        return splits

    def writable(self, folder: Path) -> Path:
        """Make a folder below the cache.

        Raises:
            OutputError: it cannot be written; names `data.cache`.
            StorageError: the disk is full or fails.
        """
        with cache_errors(self.cache):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(number, os.strerror(number), str(folder))
        return folder

    def load_blend_images(self, corruption: Corruption) -> None:
        """Load the training images of `blend_dataset` into a corruption that blends images.

        Raises:
            ConfigError: there is no second data set, or it does not fit into memory.
        """
        if not isinstance(corruption, Blend):
            return
        if not self.config.get("blend_dataset"):
            raise ConfigError(
                "blend_dataset",
                None,
                "is not set; corruption=blend needs a second data set, e.g. blend_dataset=cifar10",
            )
        images = self.splits("blend_dataset").train
        if not isinstance(images, MemoryImages):
            raise ConfigError(
                "blend_dataset.store", "stream", "keeps no images in memory; use blend_dataset.store=memory"
            )
        corruption.set_images(images.pixels[torch.from_numpy(images.ids)])

    def loader(self, images: ImageSet, augment: Augment, batch: int) -> Loader:
        """Return a loader of augmented training batches."""
        data, rank_slice = self.config["data"], RankSlice(self.world.rank, self.world.size)
        return Loader(
            images,
            augment,
            batch,
            self.seed,
            self.world.device,
            rank_slice,
            data.get("workers", 0),
            data.get("max_bad", 0.0),
        )

    def images(self, images: ImageSet, batch: int = 500, title: str = "", as_bytes: bool = False) -> Iterator[Tensor]:
        """Yield x0 of the task for every image of a set, in order.

        Args:
            images: images to read.
            batch: batch size B.
            title: title of the progress report; none if empty.
            as_bytes: whether to yield uint8 k, for x0 = 2 k / 255 - 1, where the task's x0 is the image.

        Yields:
            (B, C, H, W) in [-1, 1], on this process's device.
        """
        workers = self.config["data"].get("workers", 0)
        reads_bytes = as_bytes and self.parts.task.x0_is_image
        read = bytes_in_order if reads_bytes else in_order
        batches: Iterator[Any] = read(images, batch, self.world.device, workers, self.stop.poll)
        mode: Mode = self.progress if title else "off"
        for part in Progress(mode, -(-len(images) // batch), title=title, unit="batch", images=batch).track(batches):
            yield part if reads_bytes else self.parts.task(part)[0]


def _seeded(seed: Natural) -> int:
    return seed


def settings_of(config: Mapping[str, Any], group: str, settings_type: type) -> Any:
    """Fill a dataclass from a group of the config.

    Raises:
        ConfigError: a key is invalid.
    """
    try:
        return construct(settings_type, config[group], {})
    except ConfigError as error:
        raise error.with_prefix(group) from None


def prepare_machine(config: Mapping[str, Any]) -> str:
    """Check the keys `device` and `runtime` of a config, set allocator and threads, and return the device.

    Raises:
        ConfigError: a key is invalid.
    """
    device = resolve_device(str(config["device"]))
    runtime: Runtime = settings_of(config, "runtime", Runtime)
    runtime.prepare()
    return device


def make_out(out: Path) -> None:
    """Make the folder that `out=` names.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise OutputError(f"out={out} cannot be made ({error.strerror}); give another out=") from None


def result_folder(config: Mapping[str, Any], name: str) -> RunFolder:
    """Return the folder of a command's results: `out=`, or RUN/name.

    Raises:
        OutputError: it holds a training run, whose status would be overwritten.
    """
    path = Path(config["out"] or Path(str(config["run"])) / name)
    if (path / "checkpoints").is_dir():
        raise OutputError(f"out={path} holds a training run; give another folder, or leave out= out")
    return RunFolder(path)


def session_of(run: Run, config: Mapping[str, Any]) -> Session:
    """Open a session with a run's parts and data, on the device of another config.

    Args:
        run: loaded run.
        config: resolved config of the command. If `config.data` names a data set, its images replace the run's, at the
            run's image size; else its keys that are not null replace those of the run's data.
    """
    data = {key: value for key, value in config["data"].items() if value is not None}
    data = {**data, "size": run.config["data"]["size"]} if "part" in data else {**run.config["data"], **data}
    return Session({**run.config, **{key: config[key] for key in ("device", "runtime")}, "data": data})


def root_settings(settings_type: type, config: Mapping[str, Any]) -> Any:
    """Fill a dataclass from the keys at the root of a config."""
    names = {field.name for field in fields(settings_type)}
    return construct(settings_type, {key: value for key, value in config.items() if key in names}, {})


def train_settings(config: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of the group `train`."""
    return settings_of(config, "train", TrainSettings)


def loggers_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the loggers of a training.

    Raises:
        ConfigError: there is no such logger, or its package is not installed.
    """
    loggers: list[str] = config["loggers"]
    conform("loggers", loggers, PossiblyEmpty[LoggerName])
    check_loggers(loggers)
    return loggers

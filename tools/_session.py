"""What the training tools share: the machine, the data, the tokenizer, the run folder."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from _cli import compose, resolved, user_cache
from omegaconf import DictConfig
from torch import Tensor

from ldae.counter import permutation, seed_of
from ldae.data.cache import Context
from ldae.data.datasets import Dataset
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import Loader, Share, in_order
from ldae.engine.distributed import World, join_world, leave_world
from ldae.engine.run import RunFolder, check_same
from ldae.engine.runtime import keep_freed_memory, pick_device, use_threads
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.trainer import Job, Trainer
from ldae.errors import CheckpointError, ConfigError, Fault
from ldae.export import TOKENIZER_FILE
from ldae.files import json_hash, read_json, write_json
from ldae.objectives.panels import FilterPanel, filter_tiles
from ldae.parts import Natural, construct
from ldae.system import System
from ldae.tokenizers.base import Tokenizer, load_tokenizer, save_tokenizer

# keys that may change between a run and its resumption: none of them changes what is computed
FREE = ("out", "device", "runtime", "allow", "experiment", "data.root", "data.cache", "data.workers", "data.max_bad",
        "data.max_pixels", "data.download", "tokenizer.weights", "monitor", "train.checkpoint_every", "train.keep",
        "train.log_every")  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """The machine's share in a run; nothing here changes what is computed, but for rounding.

    Attributes:
        threads: of this process's matrix products; 0 for torch's choice.
        progress: whether to draw progress bars; `auto` draws them on a terminal.
    """

    threads: Natural = 0
    progress: Literal["auto", True, False] = "auto"

    def prepare(self) -> None:
        """Sets allocator and threads. Call it before tensors are made."""
        keep_freed_memory()
        use_threads(self.threads)

    @property
    def bars(self) -> bool:
        return sys.stderr.isatty() if self.progress == "auto" else bool(self.progress)


class Session:
    """One run of a tool: config, machine, data.

    Args:
        config: resolved.

    Raises:
        ConfigError: a key cannot work; nothing was read or written yet.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        for key in ("seed",):
            construct(_seeded, {key: config[key]}, {})
        if not isinstance(config["allow"], list):
            raise ConfigError("allow", config["allow"], "must be a list of keys, e.g. allow=[train.steps]")
        self.runtime: Runtime = _settings(config, "runtime", Runtime)
        self.device = pick_device(str(config["device"]))
        self.runtime.prepare()
        self.seed: int = config["seed"]
        torch.manual_seed(seed_of(self.seed))  # the networks' start
        self.system = System(config)
        self.cache = user_cache(config["data"].get("cache"))
        self.stop = StopFlag()
        self.world = World(torch.device(self.device))

    @contextlib.contextmanager
    def running(self, run: RunFolder) -> Iterator[None]:
        """Listens to signals, joins the other processes, holds the folder, and leaves its status behind."""
        with self.stop.listening():
            self.world = join_world(self.device)
            if self.world.main:
                run.acquire()
            try:
                yield
            except Fault as fault:
                if self.world.main:
                    state = "interrupted" if fault.code == 75 else "failed"
                    run.set_status(state, run.status().get("step", 0), fault.code, str(fault))
                raise
            finally:
                run.release()
                leave_world()

    def splits(self) -> Splits:
        """Reads the data set; names the files that were left out."""
        dataset: Dataset = self.system["data"]
        own = {k: v for k, v in self.config["data"].items() if k in ("workers", "max_bad", "max_pixels")}
        given = {"cache": self.cache, "poll": self.stop.poll, "progress": self.runtime.bars and self.world.main}
        try:
            found = dataset.open(construct(Context, own, given))
        except ConfigError as error:
            raise error.inside("data") from None
        if found.bad and self.world.main:
            print(f"{len(found.bad)} unreadable images left out, the first: {': '.join(found.bad[0])}", file=sys.stderr)
        return found

    def loader(self, images: ImageSet, augment: str, batch: int) -> Loader:
        """Training batches of a set, augmented by the part of group `augment`."""
        data, share = self.config["data"], Share(self.world.rank, self.world.size)
        return Loader(
            images,
            self.system[augment],
            batch,
            self.seed,
            self.world.device,
            share,
            data.get("workers", 0),
            data.get("max_bad", 0.0),
        )

    def images(self, images: ImageSet, batch: int = 500) -> Iterator[Tensor]:
        """All images of a set in order, (B, 3, H, W) in [-1, 1], on this process's device."""
        for found in in_order(images, batch, self.world.device, self.config["data"].get("workers", 0), self.stop.poll):
            yield 2 * found.images - 1


def _seeded(seed: Natural) -> int:
    return seed


def _settings(config: Mapping[str, Any], group: str, kind: type) -> Any:
    try:
        return construct(kind, config[group], {})
    except ConfigError as error:
        raise error.inside(group) from None


def train_settings(config: Mapping[str, Any]) -> TrainSettings:
    """The group `train`, checked."""
    return _settings(config, "train", TrainSettings)


def finished(run: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether the run ended well before, with this very config.

    Raises:
        UsageError: the folder holds a run of another config.
    """
    path = run.path / "config.json"
    if path.exists():
        check_same(read_json(path), config, [*FREE, *config["allow"]])
    return run.status().get("state") == "done"


def begin(run: RunFolder, config: Mapping[str, Any], splits: Splits) -> None:
    """Leaves the run's config and its data set behind, or holds the data set against the one it was begun with.

    Raises:
        UsageError: the run was begun with other images or another division of them.
    """
    path = run.path / "data.json"
    sizes = {name: len(getattr(splits, name)) for name in ("train", "holdout", "test")}
    known = {"fingerprint": splits.fingerprint, "images": sizes, "classes": list(splits.classes)}
    if path.exists():
        check_same(read_json(path), known, ["unreadable", *config["allow"]])
    write_json(path, {**known, "unreadable": [list(pair) for pair in splits.bad]})
    write_json(run.path / "config.json", dict(config))


def ensure_tokenizer(session: Session, splits: Splits, run: RunFolder) -> str:
    """Fills the session's tokenizer and leaves a copy in the run folder: from there, from `tokenizer.weights`, from
    the user's cache, or fitted now and cached.

    Returns:
        SHA-256 of the tokenizer's file.
    """
    tokenizer: Tokenizer = session.system["tokenizer"]
    target = run.path / TOKENIZER_FILE
    if session.world.main and not target.exists():
        source = _given_weights(session) or _cached_tokenizer(session, splits)
        load_tokenizer(source, tokenizer)
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.copyfile(source, temporary)
        temporary.rename(target)
    session.world.wait()
    found = load_tokenizer(target, tokenizer)
    tokenizer.to(session.world.device)
    return found


def _given_weights(session: Session) -> Path | None:
    weights = session.config["tokenizer"]["weights"]
    if weights is None:
        return None
    path = Path(str(weights)).expanduser()
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(
            f"tokenizer.weights={weights} is missing; give a file or folder that train_tokenizer wrote"
        )
    return path


def tokenizer_key(session: Session, splits: Splits) -> str:
    """Names a tokenizer in the cache: what it is, what it was fitted on, how."""
    spec = {k: v for k, v in session.config["tokenizer"].items() if k != "weights"}
    seed = session.seed if session.system["tokenizer"].needs_training else 0
    return json_hash([spec, session.system["data"].size, splits.fingerprint, seed])[:20]


def _cached_tokenizer(session: Session, splits: Splits) -> Path:
    folder = session.cache / "tokenizers" / tokenizer_key(session, splits)
    path = folder / TOKENIZER_FILE
    if not path.exists():
        config = tokenizer_config(session.config)
        sub = Session(config)
        sub.stop, sub.world = session.stop, World(session.world.device)
        name = type(sub.system["tokenizer"]).__name__
        print(f"fitting the tokenizer {name} (kept in {folder})", file=sys.stderr)
        run = RunFolder(folder)
        run.acquire()
        try:
            fit_tokenizer(sub, splits, run)
        finally:
            run.release()
    return path


def tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of train_tokenizer.py for the tokenizer, data and machine of another tool's config."""
    root: DictConfig = compose("train_tokenizer", [])
    for group in ("data", "tokenizer", "seed", "device", "runtime"):
        root[group] = config[group]
    return resolved(root)


def fit_tokenizer(session: Session, splits: Splits, run: RunFolder) -> str:
    """Fits or trains the session's tokenizer on train, and writes it to the run folder with its filters.

    Returns:
        SHA-256 of the file.
    """
    tokenizer: Tokenizer = session.system["tokenizer"].to(session.world.device)
    fit = session.config["tokenizer"]["fit"]
    sample = _sample(splits.train, fit["images"], session.seed)
    tokenizer.fit(session.images(sample))
    if tokenizer.needs_training:
        settings = train_settings(session.config)
        loader = session.loader(splits.train, "augment", settings.batch)
        record = {"config": session.config, "data": splits.fingerprint}
        Trainer(
            {"tokenizer": session.system["objective"].to(session.world.device)},
            loader,
            session.system["optim"],
            settings,
            session.seed,
            Job(run, session.world, record, [FilterPanel(tokenizer)], session.stop, session.runtime.bars),
        ).fit()
        tokenizer.calibrate(session.images(sample))
    from ldae.engine.logging import save_png

    save_png(run.path / "filters.png", filter_tiles(tokenizer))
    spec = {k: v for k, v in session.config["tokenizer"].items() if k != "weights"}
    return save_tokenizer(run.path / TOKENIZER_FILE, tokenizer, spec, splits.fingerprint)


def _sample(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    if count is None or count >= len(images):
        return images
    return images.subset(permutation(seed, 0, len(images))[:count].sort().values.numpy())

"""Continue a run: is it finished, has it the same config and images, and which keys may have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ldae.core.files import read_sealed_json, write_sealed_json
from ldae.data.images import Splits
from ldae.engine.run_folder import RunFolder, check_same_config, differences

# keys that may change on resumption: they do not affect results
IGNORED_ON_RESUME = ("version", "out", "device", "runtime", "allow", "experiment", "data.root", "data.cache",
        "data.workers", "loggers", "data.max_bad", "data.max_pixels", "data.download", "tokenizer.weights", "monitor",
        "train.checkpoint_every", "train.keep",
        "train.log_every", "train.recompute", "train.shard", "split", "run", "blend_dataset.root")  # fmt: skip


def is_finished(run: RunFolder, config: Mapping[str, Any]) -> bool:
    """Return whether the run is finished with this config.

    A run continues if `allow` names a key that has changed.

    Raises:
        UsageError: the folder holds a run of another config.
    """
    path = run.path / "config.json"
    saved = read_sealed_json(path) if path.exists() else config
    check_same_config(saved, config, [*IGNORED_ON_RESUME, *config["allow"]])
    return run.status().get("state") == "done" and not differences(saved, config, IGNORED_ON_RESUME)


def no_start() -> None:
    """Do nothing: only the main process writes the config of a run."""


def start_run(run: RunFolder, config: Mapping[str, Any], splits: Splits) -> Callable[[], None]:
    """Write a new run's config and data fingerprint, or compare them with those of the run on disk.

    Returns:
        A function that writes those of a run on disk, to be called once nothing can refuse to continue it: a command
        that is refused leaves them as they are.

    Raises:
        UsageError: the run on disk has other images or other splits.
    """
    path = run.path / "data.json"
    sizes = {name: len(getattr(splits, name)) for name in ("train", "holdout", "test")}
    summary = {"fingerprint": splits.fingerprint, "images": sizes, "classes": list(splits.classes)}
    if path.exists():
        check_same_config(read_sealed_json(path), summary, ["unreadable", "notes", *config["allow"]])
    unreadable = [list(pair) for pair in splits.bad]

    def write() -> None:
        write_sealed_json(path, {**summary, "unreadable": unreadable, "notes": list(splits.notes)})
        write_sealed_json(run.path / "config.json", dict(config))

    if not path.exists():
        write()
    return write

"""Read the cost of a pretraining and of its tokenizer's training from their logs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldae.core.files import sha256
from ldae.engine.checkpoint import newest
from ldae.export.encoder import TOKENIZER_FILE, find_checkpoint


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hours(run: Path, cache: Path, device: str) -> tuple[float, str]:
    """Return the core-hours or GPU-hours of the training loops of a run and of its tokenizer, and the unit.

    Checkpoints, evaluations and the start of processes do not count. A tokenizer counts in full for each run that uses
    it.

    Args:
        run: folder of a finished pretraining run.
        cache: folder of the user's cache, which holds trained tokenizers.
        device: `cpu` or a CUDA device.
    """
    manifest = find_checkpoint(run).manifest
    trainings = [(seconds(run, manifest["config"]["train"]["batch"]), manifest["config"])]
    trainings += tokenizer_seconds(manifest["tokenizer"], cache)
    on_gpu = device.startswith("cuda")
    weighted = [s * (1 if on_gpu else config["runtime"]["threads"] or cores()) for s, config in trainings]
    return sum(weighted) / 3600, "GPU" if on_gpu else "core"


def tokenizer_seconds(hash: str | None, cache: Path) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Yield (seconds, config) of the trainings of the tokenizer with a hash, if the cache has it."""
    for file in sorted((cache / "tokenizers").glob(f"*/{TOKENIZER_FILE}")) if hash else ():
        if sha256(file) != hash:
            continue
        checkpoint = newest(file.parent / "checkpoints", set_aside=False)
        if checkpoint is not None:
            config = checkpoint.manifest["config"]
            yield seconds(file.parent, config["train"]["batch"]), config
            if checkpoint.manifest.get("perceptual"):
                batch = config["perceptual"]["fit"]["batch"]
                yield seconds(cache / "perceptual" / checkpoint.manifest["perceptual"], batch), config
        return


def seconds(run: Path, batch: int) -> float:
    """Return the seconds of a training loop, from the speeds in its metrics.jsonl."""
    path, total, previous_step = run / "metrics.jsonl", 0.0, 0
    if not path.exists():
        return total
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "images_per_second" in row:
            total += (row["step"] - previous_step) * batch / row["images_per_second"]
            previous_step = row["step"]
    return total

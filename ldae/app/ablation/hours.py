"""What a pretraining and its tokenizer's training cost, read from what they left behind."""

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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hours(run: Path, cache: Path, device: str) -> tuple[float, str]:
    """Hours of the training loops of a finished run and of its tokenizer, times cores or GPUs, and which of them.

    Checkpoints, looks at the network and the start of processes are not in it. A tokenizer counts in full for each run
    that uses it.

    Args:
        run: folder that pretraining wrote.
        cache: the user's, where trained tokenizers are.
        device: `cpu` or of CUDA.
    """
    found = find_checkpoint(run).manifest
    spent = [(seconds(run, found["config"]["train"]["batch"]), found["config"])]
    spent += tokenizer_seconds(found["tokenizer"], cache)
    on_gpu = device.startswith("cuda")
    share = [s * (1 if on_gpu else config["runtime"]["threads"] or cores()) for s, config in spent]
    return sum(share) / 3600, "GPU" if on_gpu else "core"


def tokenizer_seconds(hash: str | None, cache: Path) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """(seconds, config) of the trainings behind the tokenizer of a hash, if it was trained and is in the cache."""
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
    """Seconds of a training loop, from the speeds in its metrics.jsonl."""
    path, spent, before = run / "metrics.jsonl", 0.0, 0
    if not path.exists():
        return spent
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "images_per_second" in row:
            spent += (row["step"] - before) * batch / row["images_per_second"]
            before = row["step"]
    return spent

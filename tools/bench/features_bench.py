"""Measure protocols on synthetic features of ImageNet's size, each in a process with a memory limit."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from ldae.config.schema import conform
from ldae.core.errors import ConfigError, Fault
from ldae.core.files import open_atomic
from ldae.core.types import Count, Natural, Positive
from ldae.engine.runtime import peak_gib
from linear_probe.feature_file import read_features
from linear_probe.protocols import SGDHeads, joined
from linear_probe.registry import PROTOCOLS

GIB = 2**30
SIGNAL = 0.15  # standard deviation of the class means; within a class it is 1
BLOCK = 16384  # rows of a block


@dataclass(frozen=True)
class FeatureBench:
    """Configure the measurement of protocols.

    Attributes:
        rows: number of features in train and hold-out.
        holdout: number of features in the hold-out.
        queries: number of features in test.
        dimensions: feature dimensions D.
        classes: number of classes.
        epochs: training epochs of heads.
        protocols: names of the protocols.
        memory: memory limit of a protocol's process in GiB.
        threads: threads of torch and faiss; all cores if 0.
        seed: seed of the features.
        out: output folder.
    """

    rows: Count
    holdout: Count
    queries: Count
    dimensions: Count
    classes: Count
    epochs: Positive
    protocols: list[str]
    memory: Positive
    threads: Natural
    seed: Natural
    out: str

    def __post_init__(self) -> None:
        for name in self.protocols:
            conform("protocols", name, Literal[tuple(n for n in PROTOCOLS if not n.endswith("_augmented"))])
        if self.holdout >= self.rows:
            raise ConfigError("holdout", self.holdout, f"is not less than rows={self.rows}")


@dataclass(frozen=True)
class ProtocolCost:
    """Time and memory of a protocol.

    Attributes:
        protocol: name of the protocol.
        steps: training steps of the heads in this measurement; 0 without training.
        whole: training steps of the full protocol; 0 without training.
        read: seconds of reading the file.
        tried: seconds of the selection on the hold-out.
        final: seconds of the final fit and the score on test.
        peak: peak memory of the process in GiB.
        accuracy: accuracy on test in percent; the features are synthetic.
    """

    protocol: str
    steps: int
    whole: int
    read: float
    tried: float
    final: float
    peak: float
    accuracy: float


def features_bench(settings: FeatureBench) -> Iterator[ProtocolCost]:
    """Measure each protocol in turn on cached synthetic features.

    Raises:
        Fault: a protocol's process failed, for example for lack of memory.
    """
    drawn = [settings.rows, settings.holdout, settings.queries, settings.dimensions, settings.classes, settings.seed]
    file = Path(settings.out) / f"features-{'-'.join(map(str, drawn))}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _draw(settings, file)
    context = multiprocessing.get_context("spawn")
    for name in settings.protocols:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_measure, args=(name, file, settings, there))
        child.start()
        there.close()
        try:
            result = here.recv()
        except EOFError:
            child.join()
            raise Fault(f"{name}: its process ended with {child.exitcode}; memory={settings.memory:g} GiB") from None
        child.join()
        if isinstance(result, str):
            raise Fault(f"{name}: {result}; memory={settings.memory:g} GiB is too little")
        yield result


def _measure(name: str, file: Path, settings: FeatureBench, pipe: Connection) -> None:
    import faiss
    import torch

    limit = int(settings.memory * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # limits later allocations
    threads = settings.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        pipe.send(_scored(name, file, settings))
    except (MemoryError, RuntimeError) as error:
        pipe.send(str(error).splitlines()[0])


def _scored(name: str, file: Path, settings: FeatureBench) -> ProtocolCost:
    start = time.perf_counter()
    splits = read_features(file).splits
    train, holdout, test = (splits[split] for split in ("train", "holdout", "test"))
    read, protocol, steps, whole = time.perf_counter(), PROTOCOLS[name], 0, 0
    if isinstance(protocol, SGDHeads):
        whole = protocol.recipe.lengths(len(train))[2]
        recipe = replace(protocol.recipe, epochs=settings.epochs, steps=None)
        protocol, steps = SGDHeads(name, protocol.source, recipe), recipe.lengths(len(train))[2]
    chosen = protocol.select(train, holdout, settings.classes, settings.seed)
    tried = time.perf_counter()
    accuracy = protocol.evaluate(chosen.setting, joined(train, holdout), test, settings.classes, settings.seed).score
    final = time.perf_counter()
    return ProtocolCost(name, steps, whole, read - start, tried - read, final - tried, peak_gib(), accuracy)


def _draw(settings: FeatureBench, path: Path) -> None:
    """Write features of classes with normal means, a block of rows after the other."""
    generator = np.random.default_rng(settings.seed)
    means = SIGNAL * generator.standard_normal((settings.classes, settings.dimensions), np.float32)
    counts = {"train": settings.rows - settings.holdout, "holdout": settings.holdout, "test": settings.queries}
    with open_atomic(path) as target, zipfile.ZipFile(target, "w") as file:
        for split, count in counts.items():
            y = generator.integers(0, settings.classes, count)
            with file.open(f"{split}_y.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, y)
            head = {"descr": "<f4", "fortran_order": False, "shape": (count, settings.dimensions)}
            with file.open(f"{split}_x.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array_header_2_0(f, head)
                for start in range(0, count, BLOCK):
                    rows = means[y[start : start + BLOCK]]
                    f.write((rows + generator.standard_normal(rows.shape, np.float32)).tobytes())

"""Protocols on synthetic features of ImageNet's size, each in a process of its own with a bound on its memory."""

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
SIGNAL = 0.15  # deviation of the class means, that within a class being 1
BLOCK = 16384  # rows that are drawn at once


@dataclass(frozen=True)
class FeatureBench:
    """What is measured.

    Attributes:
        rows: of train and hold-out together.
        holdout: how many of them are the hold-out's.
        queries: images of test.
        dimensions: of a feature.
        classes: how many.
        epochs: that heads are trained for.
        protocols: whose.
        memory: GiB that a protocol's process may have.
        threads: of torch and faiss; all cores if 0.
        seed: of the features.
        out: folder.
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
class Spent:
    """What a protocol took.

    Attributes:
        protocol: its name.
        steps, whole: steps of its heads' training on train, those made and those that the protocol has; 0 without.
        read, tried, final: seconds of reading the file, of the choice on the hold-out, of the figure on test.
        peak: GiB of memory at most, the program's own included.
        accuracy: on test, percent. The features are synthetic: it only tells that there was something to find.
    """

    protocol: str
    steps: int
    whole: int
    read: float
    tried: float
    final: float
    peak: float
    accuracy: float


def features_bench(settings: FeatureBench) -> Iterator[Spent]:
    """Each protocol in turn, on features that are drawn if they are not there from before.

    Raises:
        Fault: a protocol's process ended badly, as when memory does not suffice.
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
            found = here.recv()
        except EOFError:
            child.join()
            raise Fault(f"{name}: its process ended with {child.exitcode}; memory={settings.memory:g} GiB") from None
        child.join()
        if isinstance(found, str):
            raise Fault(f"{name}: {found}; memory={settings.memory:g} GiB did not do")
        yield found


def _measure(name: str, file: Path, settings: FeatureBench, pipe: Connection) -> None:
    import faiss
    import torch

    most = int(settings.memory * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # more cannot be had from here on
    threads = settings.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        pipe.send(_scored(name, file, settings))
    except (MemoryError, RuntimeError) as error:
        pipe.send(str(error).splitlines()[0])


def _scored(name: str, file: Path, settings: FeatureBench) -> Spent:
    began = time.perf_counter()
    splits = read_features(file).splits
    train, holdout, test = (splits[split] for split in ("train", "holdout", "test"))
    read, protocol, steps, whole = time.perf_counter(), PROTOCOLS[name], 0, 0
    if isinstance(protocol, SGDHeads):
        whole = protocol.recipe.lengths(len(train))[2]
        recipe = replace(protocol.recipe, epochs=settings.epochs, steps=None)
        protocol, steps = SGDHeads(name, protocol.source, recipe), recipe.lengths(len(train))[2]
    chosen = protocol.select(train, holdout, settings.classes, settings.seed)
    tried = time.perf_counter()
    accuracy = protocol.score(chosen.setting, joined(train, holdout), test, settings.classes, settings.seed)
    final = time.perf_counter()
    return Spent(name, steps, whole, read - began, tried - read, final - tried, peak_gib(), accuracy)


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

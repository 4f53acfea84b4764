"""Break the time of a benchmark's work down by operations, and that of reading JPEG files by stages."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from competitors_data import AUGMENTS, files_of
from interleaved import function
from torch.profiler import ProfilerActivity, profile

from ldae.core.rng import uniforms
from ldae.data.decode import crop_and_resize, read_pixels
from ldae.engine.runtime import keep_freed_memory

# words in the name of an operation -> kind, the first that fits
KINDS: Sequence[tuple[tuple[str, ...], str]] = (
    (("mm", "linear", "dot"), "matrix products"),
    (("conv",), "convolutions"),
    (("softmax",), "softmax"),
    (("gelu", "silu"), "activations"),
    (("norm",), "normalisation"),
    (("adam", "foreach", "lerp"), "optimizer and averages"),
    (("copy", "clone", "contiguous", "_to_copy", "cat", "index", "gather"), "copies and casts"),
    (("compiled", "cpp_fused", "graph"), "compiled code"),
    (("aten::",), "element by element, and the rest"),
)


@dataclass(frozen=True)
class Stage:
    """Share of a piece of work.

    Attributes:
        name: kind of operation, or stage.
        milliseconds: of one call of the work, by its own operations alone.
    """

    name: str
    milliseconds: float


def profiled(make: str, arguments: Mapping[str, Any], calls: int = 3) -> list[Stage]:
    """Return the time of each kind of operation in a call of a benchmark's work, by torch's profiler.

    Args:
        make: `MODULE:FUNCTION` of the work.
        arguments: of that function.
        calls: number of calls, after two that warm up.

    Returns:
        The kinds by falling time, with what is in no operation of torch as `Python and the rest`.
    """
    work, _ = function(make)(**arguments)
    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        elapsed = time.perf_counter() - start
    kinds: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        kinds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    kinds["Python and the rest"] += max(0.0, elapsed - sum(kinds.values()))
    return by_time({name: seconds / calls for name, seconds in kinds.items()})


def kind_of(operation: str) -> str:
    """Return the kind of an operation of torch; `Python and the rest` where it is none."""
    lower = operation.lower()
    return next((kind for fragments, kind in KINDS if any(part in lower for part in fragments)), "Python and the rest")


def read_in_stages(folder: str, size: int, count: int = 64) -> list[Stage]:
    """Return the processor time of each stage of reading a JPEG file for training, the mean over files, in a thread.

    Args:
        folder: class folders of images.
        size: side of the crops in pixels.
        count: number of files.
    """
    keep_freed_memory()  # as pretraining does
    images, augment = files_of(folder, count, size), AUGMENTS["random_resized_crop"]
    contents = [(images.root / images.name(i)).read_bytes() for i in range(count)]
    stages: dict[str, float] = defaultdict(float)
    pictures = []
    for content in contents:
        with _timed(stages, "decode"):
            pictures.append(read_pixels(content, 1 << 62))
    with _timed(stages, "boxes"):
        sizes = torch.tensor([len(image) for image in pictures]), torch.tensor([image.shape[1] for image in pictures])
        u = uniforms(0, 0, torch.arange(count), augment.n)
        boxes = augment.boxes(u, *sizes).long().tolist()
    for image, box in zip(pictures, boxes, strict=True):
        with _timed(stages, "crop and resize"):
            pixels = crop_and_resize(image, box, size, augment.is_exact)
        with _timed(stages, "to floats"):
            pixels.float().div_(255)
    return by_time({name: seconds / count for name, seconds in stages.items()})


@contextlib.contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Add the processor seconds of the block, of this thread, to a stage."""
    start = time.thread_time()
    yield
    stages[name] += time.thread_time() - start


def by_time(seconds: Mapping[str, float]) -> list[Stage]:
    """Return stages by falling time, in milliseconds."""
    return sorted((Stage(name, 1000 * s) for name, s in seconds.items()), key=lambda stage: -stage.milliseconds)


def breakdowns(precision: str, jpegs: str | None) -> dict[str, Callable[[], list[Stage]]]:
    """Return the works to break down, by name: those of the rows that can miss their aims.

    Args:
        precision: `fp32` or `bf16`.
        jpegs: folder of class folders of full-size images, or None.
    """
    steps = ["experiment=ldae/cifar10_cpu", "train.batch=64", f"train.precision={precision}", "train.compile=false"]
    plain = [*steps, "objective=denoise", "denoiser.keep=1", "optim=adamw"]
    unet = ["experiment=ddpm/cifar10", "train.batch=32", f"train.precision={precision}"]
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "training step, 192 x 12, not compiled": (
            "competitors:training",
            {"argv": [*plain, "denoiser=vit_192x12", "denoiser.decoder_depth=6"]},
        ),
        "training step, 128 x 8, not compiled": (
            "competitors:training",
            {"argv": [*plain, "denoiser=vit_128x8", "denoiser.decoder_depth=4"]},
        ),
        "U-Net, training step": ("competitors:training", {"argv": unet}),
        "feature extraction": (
            "competitors_probe:extraction",
            {"images": 512, "bare": False, "precision": precision},
        ),
        "logistic regression, independent features": (
            "competitors_probe:lbfgs",
            {"images": 50000, "dimensions": 384, "correlated": False},
        ),
    }
    works: dict[str, Callable[[], list[Stage]]] = {name: partial(profiled, *work) for name, work in given.items()}
    if jpegs:
        works["JPEG files cut to 224 px, a file"] = partial(read_in_stages, jpegs, 224)
    return works

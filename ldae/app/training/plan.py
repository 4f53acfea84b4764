"""Estimate memory and time of a pretraining and of its probe from a few steps on random images.

    ldae plan experiment=ldae/cifar10_cpu data.root=DIR/cifar10
    ldae plan experiment=ldae/imagenet_vit_b data.root=DIR/imagenet gpu=h100

Keys: gpu= (h200, h100, a100, l40s, 4090), whose time is estimated from its peak; every other key is pretrain's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ldae.app.compose import compose, require, resolved
from ldae.app.probing.cost import probe_seconds
from ldae.app.session import Session, train_settings
from ldae.config.schema import conform
from ldae.core.errors import ConfigError, Fault
from ldae.core.progress import duration
from ldae.data.images import MemoryImages
from ldae.data.loader import Loader
from ldae.engine.flop import count_flop
from ldae.engine.run_folder import RunFolder
from ldae.engine.runtime import describe_hardware
from ldae.engine.trainer import RunContext, Trainer
from ldae.export.encoder import MODEL
from ldae.objectives.base import PretrainingObjective

# bf16 matrix products without sparsity, FLOP/s: the H200's measured, the others by their data sheets
GPUS: Mapping[str, float] = {"h200": 790e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "4090": 165e12}
SHARE = 0.5  # assumed fraction of a GPU's peak
LAUNCHES = 0.01  # seconds in which the kernels of a step can be launched, at least; shorter steps wait for that
STATE = 4 * 5  # bytes a parameter: weight, gradient, two moments, average
SECONDS = 5.0  # duration of the timing
MOST = 32  # maximum of images in a timed step


def main(argv: Sequence[str]) -> None:
    """Print the cost of a pretraining."""
    gpu = next((word.removeprefix("gpu=") for word in argv if word.startswith("gpu=")), "h200")
    conform("gpu", gpu, Literal[tuple(GPUS)])
    require(argv, experiment="ldae/cifar10_cpu")
    print(describe_cost(cost_of([word for word in argv if not word.startswith("gpu=")]), gpu))


def trainer_on(session: Session, batch: int, images: int) -> tuple[Trainer, Loader]:
    """Return the trainer of a session on random images that are held in memory.

    Args:
        batch: batch size.
        images: number of random images.
    """
    settings = train_settings({**session.config, "train": {**session.config["train"], "batch": batch}})
    objective = session.parts.objective.to(session.device)
    assert isinstance(objective, PretrainingObjective)
    if objective.tokenizer is not None:
        objective.tokenizer.assume_fitted()
    size = session.parts.data.size
    pixels = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(images) % int(session.config["data"]["classes"])
    memory_images = MemoryImages.of(Path(), pixels, [str(i) for i in range(images)], labels)
    loader = session.loader(memory_images, session.parts.augment, batch)
    job = RunContext(RunFolder(Path()), session.world, {})
    return Trainer({MODEL: objective}, loader, session.parts.optim, settings, session.seed, job), loader


@dataclass(frozen=True)
class Cost:
    """Cost of a pretraining.

    Attributes:
        parameters: number of trained parameters.
        flop: FLOP of an image, forward and backward.
        update: FLOP of an update of the weights, for the matrix products of Muon; AdamW has none.
        state: GiB of weights, gradients, optimizer moments and average.
        activations: GiB that the forward pass of one image keeps.
        images: number of images seen in pretraining.
        batch: batch size.
        rate: images per second on this machine.
        timed_batch: batch size of the timed steps.
        tokenizer_steps: training steps of the tokenizer, which the other numbers do not include; 0 without training.
        probe: seconds of `ldae probe run=RUN` on this machine, or why it cannot be estimated.
    """

    parameters: int
    flop: float
    update: float
    state: float
    activations: float
    images: int
    batch: int
    rate: float
    timed_batch: int
    tokenizer_steps: int
    probe: float | str

    def seconds_on(self, gpu: str) -> float:
        """Return the seconds on one GPU at half of its peak."""
        return self.images * (self.flop + self.update / self.batch) / (SHARE * GPUS[gpu])


def cost_of(argv: Sequence[str]) -> Cost:
    """Return the cost of `ldae pretrain` with these arguments.

    Raises:
        ConfigError: it cannot be; or its length is in epochs, and no data are named.
    """
    session = Session(resolved(compose("pretrain", list(argv))))
    settings = train_settings(session.config)
    images = _images_seen(session)
    batch = min(settings.batch, MOST)
    trainer, loader = trainer_on(session, batch, 4 * batch)
    batches = loader.batches(0)

    def step() -> object:
        return trainer.train_step(next(batches))

    whole = _flop(step)
    update = sum(
        _flop(optimizer.step) for optimizer in trainer.state.optimizers.values()
    )  # does not depend on the batch
    with _SavedBytes() as kept:
        step()
    parameters = sum(p.numel() for p in trainer.state.weights.values())
    seconds = _seconds(step)
    return Cost(
        parameters,
        (whole - update) / batch,
        update,
        parameters * STATE / 2**30,
        kept.bytes / batch / 2**30,
        images,
        settings.batch,
        batch / seconds,
        batch,
        session.config["tokenizer"]["fit"]["steps"] if session.config.get("tokenizer") else 0,
        _probe(session),
    )


def _probe(session: Session) -> float | str:
    """Return the seconds of the default probe of a run, or why there is none."""
    if not _names_data(session):
        return "no data are named"
    try:
        return probe_seconds(session.config, [])
    except Fault as fault:
        return str(fault)


def describe_cost(cost: Cost, gpu: str) -> str:
    """Return a description of a cost."""
    name, steps = gpu.upper(), cost.images // cost.batch
    each, whole = 1024 * cost.activations, cost.state + cost.activations * cost.batch
    timed = f" in batches of {cost.timed_batch}" if cost.timed_batch != cost.batch else ""
    updates = f", and {cost.update / cost.batch / 1e9:.3g} of the updates" if cost.update else ""
    limit = f"{100 * SHARE:.0f} % of its {GPUS[gpu] / 1e12:.0f} TFLOP/s"
    on_gpu = f"{duration(cost.seconds_on(gpu))}, if steps reach {limit} and nothing else is in the way"
    if cost.seconds_on(gpu) < LAUNCHES * steps:
        on_gpu = f"{steps:,} steps this small are bound by the launch of their kernels, not by {limit}"
    lines = [
        f"{cost.parameters:,} parameters; {cost.flop / 1e9:.3g} GFLOP an image, forward and backward{updates}",
        f"{cost.images:,} images in batches of {cost.batch}",
        f"memory: {cost.state:.2f} GiB of weights and their state, {each:.2f} MiB of activations an image: "
        f"{whole:.2f} GiB for a batch in one process",
        f"here ({describe_hardware()}): {cost.rate:.3g} images/s{timed}, {_time_of(cost.images / cost.rate)}",
        f"its probe here: {cost.probe if isinstance(cost.probe, str) else duration(cost.probe)}",
        f"one {name}: {on_gpu}",
    ]
    if cost.tokenizer_steps:
        lines.append(f"the tokenizer's own training comes on top: {cost.tokenizer_steps:,} steps, once")
    return "\n".join(lines)


def _time_of(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else "less than a second"


def _images_seen(session: Session) -> int:
    settings = train_settings(session.config)
    if settings.steps is not None:
        return settings.steps * settings.batch
    if not _names_data(session):
        message = "counts passes over images that are not named; give data.root=FOLDER or train.steps=N"
        raise ConfigError("train.epochs", settings.epochs, message)
    of_epoch = len(session.splits().train) // settings.batch
    return settings.total_steps(of_epoch) * settings.batch


def _names_data(session: Session) -> bool:
    """Return whether a folder of images is named, or none is needed."""
    return session.config["data"].get("root", "") is not None


def _flop(call: Callable[[], object]) -> float:
    return float(sum(count_flop(call).values()))


def _seconds(step: Any) -> float:
    """Return the mean seconds of a step, measured over some seconds."""
    step()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        step()
        count += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


class _SavedBytes:
    """Counts the bytes that forward passes save for the backward ones while it is open."""

    def __init__(self) -> None:
        self.bytes, self.seen = 0, set[int]()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> _SavedBytes:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

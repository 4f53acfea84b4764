"""Estimate what trials cost before they run: time a few steps and a few probed images of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldae.app.ablation.trials import PlannedTrial
from ldae.app.probing.cost import probe_seconds
from ldae.app.session import Session, train_settings
from ldae.app.training.tokenizer_cache import tokenizer_config
from ldae.core.types import Batch, BatchGenerator, TrainableModule
from ldae.objectives.base import Objective
from ldae.objectives.classify import Classify
from ldae.objectives.denoise import Denoise

STEPS = 3  # timed steps after a warm-up step
WHOLE = 32  # maximum number of images in a timed step
QUIET = {"threads": 0, "progress": False}
OTHER_STARTS = 6.0  # seconds that the processes of a trial beside its probe take to start: pretraining, pictures


def training_seconds(plans: Sequence[PlannedTrial], threads: int) -> float:
    """Return the seconds of the training loops of trials and their tokenizers, one after another on this machine.

    Args:
        plans: trials; those that share a pretraining or a tokenizer count it once.
        threads: CPU threads of each process.
    """
    torch.set_num_threads(threads)
    runs = {p.run_key: p for p in plans}
    tokenizers = {p.tokenizer_key: p for p in plans if p.tokenizer_key}
    elapsed = [_pretraining(p) for p in runs.values()] + [_tokenizer(p) for p in tokenizers.values()]
    return sum(elapsed)


def _pretraining(planned: PlannedTrial) -> float:
    """Return the seconds of a trial's training loop."""
    session = Session({**planned.config, "runtime": QUIET})
    objective: Objective = session.parts.objective.to(session.device)
    if isinstance(objective, Denoise):
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    batch = _images(session, planned.config["train"]["batch"])
    if _encodes_once(session, objective):
        assert isinstance(objective, Denoise)
        with torch.no_grad():
            latents = objective.tokenizer.posterior_params(2 * batch.images - 1)
        batch = Batch(batch.images, batch.labels, batch.index, latents)
    return planned.images * _step(session, objective, batch) / len(batch)


def _tokenizer(planned: PlannedTrial) -> float:
    """Return the seconds of a tokenizer's training and, where latents are cached, of encoding the training images."""
    session = Session({**planned.config, "runtime": QUIET})
    objective: Objective = session.parts.objective.to(session.device)
    if not session.parts.tokenizer.needs_training:
        return 0.0
    sub = Session(tokenizer_config(session))
    settings = train_settings(sub.config)
    batch = _images(sub, settings.batch)
    elapsed = _perceptual(sub, batch)
    trained: Objective = sub.parts.objective.to(sub.device)
    step_seconds = 0.0
    for module in trained.trainable_modules.values():
        module.is_active(settings.steps or 0)
        step_seconds += _step(sub, module, batch)
    elapsed += step_seconds * (settings.steps or 0) * settings.batch / len(batch)
    if _encodes_once(session, objective):
        assert isinstance(objective, Denoise)
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))
        with torch.no_grad():
            each = _timed(lambda: objective.tokenizer.posterior_params(2 * batch.images - 1)) / len(batch)
        elapsed += each * len(session.splits().train)
    return elapsed


def _perceptual(session: Session, batch: Batch) -> float:
    """Return the seconds of training the classifier of a tokenizer's perceptual loss; 0 without one."""
    perceptual = session.parts.perceptual
    if perceptual is None or not perceptual.needs_training:
        return 0.0
    fit = session.config["perceptual"]["fit"]
    step = _step(session, Classify(session.parts.task, perceptual.to(session.device)), batch)
    return float(fit["steps"] * fit["batch"] * step / len(batch))


def _encodes_once(session: Session, objective: Objective) -> bool:
    """Return whether pretraining caches latents (see latent_cache)."""
    return isinstance(objective, Denoise) and objective.tokenizer.is_costly and session.parts.augment.n == 0


def _images(session: Session, batch: int) -> Batch:
    size, count = session.parts.data.size, min(batch, WHOLE)
    zeros = torch.zeros(count, dtype=torch.long, device=session.device)
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(pixels.to(session.device), zeros, zeros)


def _step(session: Session, module: TrainableModule, batch: Batch) -> float:
    """Return the seconds of one training step of a module."""
    optimizer = session.parts.optim.build(module.network)
    enabled = session.config["train"]["precision"] == "bf16"

    def train_step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(session.device).type, dtype=torch.bfloat16, enabled=enabled):
            loss, _ = module(batch, BatchGenerator([0], session.device))
        loss.backward()
        optimizer.step()
        return loss

    return _timed(train_step)


def _timed(work: Callable[[], Tensor]) -> float:
    """Return the seconds of the fastest of some calls after a warm-up."""
    durations = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        work().sum().item()  # synchronizes a GPU
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def probing_seconds(plans: Sequence[PlannedTrial], threads: int) -> float:
    """Return the seconds of probing trials one after another on this machine.

    Args:
        plans: trials; each is probed, though some may share a pretraining.
        threads: CPU threads of each process.

    Raises:
        Fault: the data of a trial cannot be read.
    """
    torch.set_num_threads(threads)
    cache: dict[tuple[object, ...], float] = {}
    total = 0.0
    for planned in plans:
        key = (planned.run_key, tuple(planned.probe), planned.trial.with_baselines)
        cache.setdefault(key, _trial_seconds(planned))
        total += cache[key]
    return total


def _trial_seconds(planned: PlannedTrial) -> float:
    argv = [f"baselines={str(planned.trial.with_baselines).lower()}", *planned.probe]
    return OTHER_STARTS + probe_seconds({**planned.config, "runtime": QUIET}, argv)

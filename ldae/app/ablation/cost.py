"""Estimate what trials cost before they run: time a few steps and a few probed images of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldae.app.ablation.trials import PlannedTrial
from ldae.app.compose import compose, resolved
from ldae.app.precision import settle_precision
from ldae.app.probing.settings import ProbeSettings
from ldae.app.probing.tables import data_source, warn_of_labels
from ldae.app.session import Session, root_settings, train_settings
from ldae.app.training.tokenizer_cache import tokenizer_config
from ldae.core.types import Batch, BatchGenerator, TrainableModule
from ldae.export.encoder import Encoder
from ldae.objectives.base import Objective, PretrainingObjective
from ldae.objectives.classify import Classify
from ldae.objectives.denoise import Denoise
from linear_probe.augmented_heads import AugmentedHeads
from linear_probe.features import Features
from linear_probe.heads import HeadTrainer
from linear_probe.protocols import KNN, Protocol, SGDHeads
from linear_probe.registry import PROTOCOLS

STEPS = 3  # timed steps after a warm-up step
WHOLE = 32  # maximum number of images in a timed step
QUIET = {"threads": 0, "progress": False}


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


FEW = 400  # images that a protocol is timed on
BATCH = 64  # images that encoding is timed on
STARTS = 12.0  # seconds that the processes of a trial take to start: pretraining, probe, pictures


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
    config, _ = settle_precision(resolved(compose("probe", ["run=RUN", *argv])))
    settings: ProbeSettings = root_settings(ProbeSettings, config)
    session = Session({**planned.config, "runtime": QUIET})
    objective = session.parts.objective.to(session.device).eval()
    assert isinstance(objective, PretrainingObjective)
    if objective.tokenizer is not None:
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    splits = session.splits()
    labels = [images.own_labels for images in (splits.train, splits.holdout, getattr(splits, settings.split))]
    warn_of_labels(data_source(planned.config["data"]), labels[0], labels[1], labels[2], splits.classes, settings.split)
    train, scored = len(splits.train) + len(splits.holdout), len(getattr(splits, settings.split))
    encoder = Encoder(objective, precision=settings.precision)
    network = encoder.network
    layers = settings.layers or range((network.encoder_layer + 1) // 2, network.encoder_layer + 1)
    images = torch.rand(BATCH, *encoder.image_shape, device=session.device)
    each, width = _encoding(encoder, images, max(layers))
    networks = 2 if settings.baselines else 1  # with the untrained one
    levels = len(settings.t or [0]) * len(settings.inputs)
    candidates = len(settings.inputs) if settings.combine else levels  # combined steps are one candidate
    trials = len(layers) * candidates * len(settings.pooling)
    sets = len(settings.repetitions) * (networks + 2 * settings.baselines)
    elapsed = STARTS + networks * levels * each * (train + scored)
    for name in settings.protocols:
        elapsed += sets * _of_protocol(PROTOCOLS[name], train, scored, width, len(splits.classes), trials, each)
    return elapsed


def _encoding(encoder: Encoder, images: Tensor, layer: int) -> tuple[float, int]:
    """Return the seconds of an image through the network to a layer, and the layer's width."""
    tokens = encoder.tokens(images, [layer])[layer]
    work = lambda: encoder.tokens(images, [layer])[layer].sum().item()  # noqa: E731  # waits for a GPU
    return _seconds(work) / len(images), tokens.shape[-1]


def _of_protocol(
    protocol: Protocol, train: int, scored: int, width: int, classes: int, trials: int, encoding: float
) -> float:
    """Return the seconds in which a protocol selects among feature keys and fits the final head."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: Features(  # noqa: E731
        torch.randn(n, width, generator=generator), torch.randint(classes, (n,), generator=generator)
    )
    heads = protocol.plain if isinstance(protocol, AugmentedHeads) else protocol
    if isinstance(heads, SGDHeads):
        batch, _, steps = heads.recipe.lengths(train)
        some = draw(batch)
        trainer = HeadTrainer(width, classes, heads.recipe, train, generator)
        anew = batch * encoding if isinstance(protocol, AugmentedHeads) else 0.0
        passes = 2 if anew else trials + 1
        return passes * steps * (_seconds(lambda: trainer.step(some.x, some.y)) * (trials if anew else 1) + anew)
    few, held = draw(min(FEW, train)), draw(min(FEW, scored))
    larger = train / len(few) * (scored / len(held) if isinstance(protocol, KNN) else 1)
    return (trials + 1) * larger * _seconds(lambda: protocol.sweep(few, held, classes, 0), repeats=1)


def _seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the seconds of one call, the fastest of some."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)

"""Estimate how long cells are probed, before they are run: encoding and each protocol are timed on a few images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from _cli import compose, resolved
from _plan import Planned
from _precision import settle_precision
from _probe_settings import ProbeSettings
from _scores import place_of, warned
from _session import Session, own_settings
from torch import Tensor

from ldae.export import Encoder
from ldae.objectives.base import Representing
from linear_probe.augmented import AugmentedHeads
from linear_probe.features import Features
from linear_probe.heads import HeadTrainer
from linear_probe.protocols import KNN, Protocol, SGDHeads
from linear_probe.registry import PROTOCOLS

FEW = 400  # images that a protocol is timed on
BATCH = 64  # images that encoding is timed on
STARTS = 12.0  # seconds in which the processes of a cell start: pretraining, probe, pictures
QUIET = {"threads": 0, "progress": False}


def probing_seconds(plans: Sequence[Planned], threads: int) -> float:
    """Return the seconds in which cells are probed one after another on this machine.

    Args:
        plans: cells; each is probed, though some may share a pretraining.
        threads: of each process.

    Raises:
        Fault: the data of a cell cannot be read.
    """
    torch.set_num_threads(threads)
    known: dict[tuple[object, ...], float] = {}
    total = 0.0
    for planned in plans:
        key = (planned.run_key, tuple(planned.probe), planned.cell.floors)
        known.setdefault(key, _of_cell(planned))
        total += known[key]
    return total


def _of_cell(planned: Planned) -> float:
    words = [f"floors={str(planned.cell.floors).lower()}", *planned.probe]
    config, _ = settle_precision(resolved(compose("probe", ["run=RUN", *words])))
    settings: ProbeSettings = own_settings(ProbeSettings, config)
    session = Session({**planned.config, "runtime": QUIET})
    objective = session.system["objective"].to(session.device).eval()
    assert isinstance(objective, Representing)
    if objective.tokenizer is not None:
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    splits = session.splits()
    labels = [images.own_labels for images in (splits.train, splits.holdout, getattr(splits, settings.split))]
    warned(place_of(planned.config["data"]), labels[0], labels[1], labels[2], splits.classes, settings.split)
    train, scored = len(splits.train) + len(splits.holdout), len(getattr(splits, settings.split))
    encoder = Encoder(objective, precision=settings.precision)
    network = encoder.network
    layers = settings.layers or range((network.encoder_layer + 1) // 2, network.encoder_layer + 1)
    images = torch.rand(BATCH, *encoder.image_shape, device=session.device)
    each, width = _encoding(encoder, images, max(layers))
    networks = 2 if settings.floors else 1  # the untrained one too
    levels = len(settings.t or [0]) * len(settings.inputs)
    cells = len(layers) * levels * len(settings.pooling)
    sets = len(settings.repetitions) * (networks + 2 * settings.floors)
    spent = STARTS + networks * levels * each * (train + scored)
    for name in settings.protocols:
        spent += sets * _of_protocol(PROTOCOLS[name], train, scored, width, len(splits.classes), cells, each)
    return spent


def _encoding(encoder: Encoder, images: Tensor, layer: int) -> tuple[float, int]:
    """Return the seconds of an image through the network to a layer, and the layer's width."""
    found = encoder.tokens(images, [layer])[layer]
    return _timed(lambda: encoder.tokens(images, [layer])) / len(images), found.shape[-1]


def _of_protocol(
    protocol: Protocol, train: int, scored: int, width: int, classes: int, cells: int, encoding: float
) -> float:
    """Return the seconds in which a protocol chooses among cells and is fitted once more."""
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
        passes = 2 if anew else cells + 1
        return passes * steps * (_timed(lambda: trainer.step(some.x, some.y)) * (cells if anew else 1) + anew)
    few, held = draw(min(FEW, train)), draw(min(FEW, scored))
    larger = train / len(few) * (scored / len(held) if isinstance(protocol, KNN) else 1)
    return (cells + 1) * larger * _timed(lambda: protocol.tried(few, held, classes, 0), repeats=1)


def _timed(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the seconds of one call, the fastest of some."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)

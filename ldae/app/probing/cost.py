"""Estimate what a probe costs: time the encoding of a few images, and protocols on features drawn like an encoder's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import settle_precision
from ldae.app.probing.encoders import PCA_DIMENSIONS, PIXELS_SKIP, default_layers
from ldae.app.probing.settings import ProbeSettings
from ldae.app.probing.tables import data_source, warn_of_labels
from ldae.app.session import Session, root_settings
from ldae.export.encoder import Encoder
from ldae.objectives.base import PretrainingObjective
from linear_probe.augmented_heads import AugmentedHeads
from linear_probe.baselines import SIDE
from linear_probe.features import Features
from linear_probe.heads import HeadTrainer
from linear_probe.linear import Logistic
from linear_probe.protocols import KNN, LBFGS, Protocol, SGDHeads
from linear_probe.registry import PROTOCOLS

FEW = 4000  # images that a linear head is timed on; fewer would time its calls
BANK, QUERIES = 16000, 2000  # images that kNN is timed on; a smaller bank takes longer for each of its images
# Evaluations of the loss in a sweep over six penalties, and in the fit of the final head: ViTs and pixels of CIFAR-10.
SWEEP, FINAL = 150, 37
NEIGHBOURS = 20  # of the search that is scored: wide features, whose searches take long, select few
BATCH = 128  # images that encoding is timed on
START = 2.0  # seconds that the process of a probe takes to start and to write its tables


def probe_seconds(config: Mapping[str, Any], argv: Sequence[str]) -> float:
    """Return the seconds of `ldae probe run=RUN ARGV` on this machine.

    Args:
        config: config of the run's pretraining.
        argv: keys of the probe.

    Raises:
        Fault: the data cannot be read, or have nothing to score.
    """
    settings: ProbeSettings = root_settings(
        ProbeSettings, settle_precision(resolved(compose("probe", ["run=RUN", *argv])))[0]
    )
    session = Session(config)
    objective = session.parts.objective.to(session.device).eval()
    assert isinstance(objective, PretrainingObjective)
    if objective.tokenizer is not None:
        objective.tokenizer.set_scale(torch.ones(objective.tokenizer.shape[0]))  # timed, not scored
    splits = session.splits()
    scored_images = getattr(splits, settings.split)
    labels = [images.own_labels for images in (splits.train, splits.holdout, scored_images)]
    warn_of_labels(data_source(config["data"]), labels[0], labels[1], labels[2], splits.classes, settings.split)
    train, held, scored = len(splits.train) + len(splits.holdout), len(splits.holdout), len(scored_images)
    encoder = Encoder(objective, precision=settings.precision)
    layers = settings.layers or default_layers(encoder.network)
    images = torch.rand(BATCH, *encoder.image_shape, device=session.device)
    each, width = _encoding(encoder, images, max(layers))
    networks = 2 if settings.baselines else 1  # with the untrained one
    levels = len(settings.t or [0]) * len(settings.inputs)
    candidates = len(settings.inputs) if settings.combine else levels  # combined steps are one candidate
    of_network = [width] * (len(layers) * candidates * len(settings.pooling))
    sizes = Sizes(train, held, scored, len(splits.classes))
    passes = levels // candidates * min(len(settings.protocols), candidates)  # on scored images: of selected levels
    elapsed = START + networks * each * (levels * train + passes * scored)
    if settings.baselines:
        of_pixels = 3 * min(SIDE, splits.train.size) ** 2
        elapsed += _logistic_regression(of_pixels, train, len(splits.classes)).moments  # of the PCA
    for name in settings.protocols:
        of_baselines = baseline_widths(splits.train.size, name) if settings.baselines else []
        for widths, times in ((of_network, networks), *((widths, 1) for widths in of_baselines)):
            elapsed += len(settings.repetitions) * times * _of_protocol(PROTOCOLS[name], sizes, widths, each)
    return elapsed


@dataclass(frozen=True)
class Sizes:
    """Numbers of images of train and hold-out, of the hold-out, and of what is scored; number of classes."""

    train: int
    held: int
    scored: int
    classes: int


def baseline_widths(size: int, protocol: str) -> list[list[int]]:
    """Return the widths of the features of raw pixels and of whole-image PCA, for images of `size` pixels a side."""
    of_pixels = 3 * min(SIDE, size) ** 2
    of_pca = [width for width in PCA_DIMENSIONS if width < of_pixels]
    return [[] if protocol in PIXELS_SKIP else [of_pixels], of_pca]


def _encoding(encoder: Encoder, images: Tensor, layer: int) -> tuple[float, int]:
    """Return the seconds of an image through the network to a layer, and the layer's width."""
    tokens = encoder.tokens(images, [layer])[layer]
    work = lambda: encoder.tokens(images, [layer])[layer].sum().item()  # noqa: E731  # waits for a GPU
    return _seconds(work, repeats=4) / len(images), tokens.shape[-1]


def _of_protocol(protocol: Protocol, sizes: Sizes, widths: Sequence[int], encoding: float) -> float:
    """Return the seconds in which a protocol selects among feature keys and fits the final head.

    Args:
        protocol: the protocol.
        sizes: numbers of images and classes.
        widths: of the features of each feature key.
        encoding: seconds of an image through the network.
    """
    shares = {width: widths.count(width) / len(widths) for width in widths}
    return sum(share * _at_width(protocol, sizes, width, len(widths), encoding) for width, share in shares.items())


def _at_width(protocol: Protocol, sizes: Sizes, width: int, trials: int, encoding: float) -> float:
    """Return the seconds of a protocol whose `trials` feature keys are all of one width."""
    train, classes = sizes.train, sizes.classes
    heads = protocol.plain if isinstance(protocol, AugmentedHeads) else protocol
    if isinstance(heads, SGDHeads):
        batch, _, steps = heads.recipe.lengths(train)
        some = _drawn(batch, width, classes)
        trainer = HeadTrainer(width, classes, heads.recipe, train, torch.Generator().manual_seed(0))
        anew = batch * encoding if isinstance(protocol, AugmentedHeads) else 0.0
        passes = 2 if anew else trials + 1
        return passes * steps * (_seconds(lambda: trainer.step(some.x, some.y)) * (trials if anew else 1) + anew)
    if isinstance(protocol, LBFGS):
        parts = _logistic_regression(width, train, classes)
        return (trials + 1) * (parts.moments + parts.rotation) + (trials * SWEEP + FINAL) * parts.evaluation
    bank, several = (BANK, QUERIES) if isinstance(protocol, KNN) else (FEW, FEW)
    few, queries = _drawn(min(bank, train), width, classes), _drawn(min(several, sizes.scored), width, classes)
    sweep = lambda: protocol.sweep(few, queries, classes, 0)  # noqa: E731
    if isinstance(protocol, KNN):  # its time is that of the pairs of a query and an image of the bank
        final = lambda: protocol.predict({"k": NEIGHBOURS}, few, queries.x, classes, 0)  # noqa: E731
        selecting, scoring = pairs_of_neighbours(train, sizes.held, sizes.scored, trials)
        return (selecting * _seconds(sweep) + scoring * _seconds(final)) / (len(few) * len(queries))
    return (trials + 1) * train / len(few) * _seconds(sweep, repeats=1)


@dataclass(frozen=True)
class LogisticTimes:
    """Seconds of the parts of logistic regression.

    Attributes:
        moments: second moments of the features, and their eigenvectors.
        rotation: of the features to them.
        evaluation: of the loss and its gradient, once.
    """

    moments: float
    rotation: float
    evaluation: float


@functools.cache
def _logistic_regression(width: int, train: int, classes: int) -> LogisticTimes:
    few = _drawn(min(FEW, train), width, classes)
    ratio = train / len(few)
    product = _seconds(lambda: few.x.T @ few.x)  # for the moments; the rotation takes another
    start = time.perf_counter()
    model = Logistic(few.x, few.y, classes)
    moments = time.perf_counter() - start - product + product * (ratio - 1)
    model.fit(1.0, iterations=1)
    fitted = _seconds(lambda: model.fit(1e-4, iterations=8))
    return LogisticTimes(moments, product * ratio, fitted / (model.n_iter + 1) * ratio)


def pairs_of_neighbours(train: int, held: int, scored: int, trials: int) -> tuple[int, int]:
    """Return the pairs of a query and an image of the bank that kNN compares, to select and to score.

    Each trial queries the hold-out, `held` of the `train` images, in the others; the final bank has all of them.
    """
    return trials * (train - held) * held, train * scored


def _drawn(count: int, width: int, classes: int) -> Features:
    """Return random features like an encoder's: correlated, with labels that a linear head reads in part.

    The condition of their moments and the noise of the labels decide how many iterations a logistic regression takes.
    """
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / torch.arange(1, width + 1).sqrt()
    x = torch.randn(count, width, generator=generator) @ mixing.T
    scores = x @ torch.randn(width, classes, generator=generator)
    noise = scores.std() * torch.randn(count, classes, generator=generator)
    return Features(x, (scores + noise).argmax(1))


def _seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the seconds of one call, the fastest of some."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)

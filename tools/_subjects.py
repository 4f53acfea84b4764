"""What a probe scores: a run's encoder, timm's, features from a file, and the floors that cost no learning."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _probe_settings import ProbeSettings
from _reading import EncodeAt, Images
from torch import Tensor

from ldae.errors import ConfigError
from ldae.export import Encoder, Run
from ldae.files import json_hash
from ldae.types import Batch
from linear_probe.banks import FeatureFile
from linear_probe.features import Cell, Features
from linear_probe.floors import PIXELS, SIDE, pixels_name, raw_pixels, whole_image_pca
from linear_probe.pooling import POOLINGS
from linear_probe.scaling import Affine
from linear_probe.sources import Encoded
from linear_probe.subsets import Part

if TYPE_CHECKING:
    from ldae.timm_encoder import TimmEncoder

PCA_DIMENSIONS = (64, 128, 256)
FROM_FILE = Cell(pooling="file")
UNTRAINED = "the same network, untrained"


@dataclass(frozen=True)
class Subject:
    """Something to score: where its features come from. A linear_probe.sources.Source.

    Attributes:
        name: as in the table.
        cells: columns among which a protocol chooses.
        read: (split, cell) -> features.
        encode: how images become features, and those images; None where there are none.
        skip: protocols that are left out for it.
        checkpoint, step: what was learned; `none` for a floor.
    """

    name: str
    cells: Sequence[Cell]
    read: Callable[[str, Cell], Features]
    encode: tuple[EncodeAt, Images] | None
    skip: Sequence[str] = field(default=())
    checkpoint: str = "none"
    step: int = 0

    def features(self, part: Part, cell: Cell) -> Features:
        found = self.read(part.split, cell)
        return found if part.rows is None else Features(part.of(found.x), part.of(found.y))

    def count(self, parts: Sequence[Part]) -> int:
        return sum(self._size(part.split) if part.rows is None else len(part.rows) for part in parts)

    def _size(self, split: str) -> int:
        if self.encode is not None:
            return len(self.encode[1].split(split))  # known before anything is read
        return len(self.read(split, self.cells[0]))

    def stream(
        self, parts: Sequence[Part], cells: Sequence[Cell], augment: str, batch: int, seed: int
    ) -> Iterator[Encoded]:
        assert self.encode is not None, "refused before: no image to augment"
        encode, images = self.encode
        return images.stream(encode, parts, cells, augment, batch, seed)


def of_run(name: str, run: Run, images: Images, settings: ProbeSettings, trained: bool = True) -> Subject:
    """A run's encoder at the layers, levels and inputs that are asked for.

    Raises:
        ConfigError: it cannot be read so.
    """
    hash_, weights = (run.checkpoint.hash, settings.weights) if trained else ("none", "")
    encoder = Encoder(run.objective, precision=settings.precision, seed=settings.seed)
    cells = list(_cells_of_run(name, encoder, settings))

    def encode(batch: Batch, cells: Sequence[Cell]) -> Mapping[Cell, Tensor]:
        found: dict[Cell, Tensor] = {}
        for t, kind in sorted({(c.t, c.input) for c in cells}):
            own = [c for c in cells if (c.t, c.input) == (t, kind)]
            encoder.t, encoder.noised = t, kind == "noised"
            tokens = encoder.tokens(batch.images, layers_of(own), batch.index, class_token=encoder.network.prefix > 0)
            found |= pooled(tokens, own, encoder.network.prefix)
        return found

    key = f"{hash_[:16] if trained else 'untrained'}-{weights}-{settings.precision}"
    return of_images(name, key, cells, encode, images, checkpoint=hash_, step=run.checkpoint.step * trained)


def of_timm(images: Images, settings: ProbeSettings, device: str, trained: bool = True) -> Subject:
    """A vision transformer of timm with weights from a file, or random.

    Raises:
        ConfigError: timm has no such network, the weights are of another, or it cannot be read so.
    """
    from ldae.timm_encoder import TimmEncoder

    weights = Path(settings.checkpoint).expanduser() if settings.checkpoint and trained else None
    try:
        encoder = TimmEncoder(settings.timm or "", weights, settings.size, settings.precision, settings.seed).to(device)
    except ConfigError as error:
        own = {"weights": "checkpoint"}.get(error.key, error.key)
        raise ConfigError(own, error.value, error.expectation) from None
    name = encoder.name if encoder.hash != "none" else f"{encoder.name}, random weights"
    name = name if trained else UNTRAINED
    cells = list(_cells_of_timm(encoder, settings))

    def encode(batch: Batch, cells: Sequence[Cell]) -> Mapping[Cell, Tensor]:
        return pooled(encoder.tokens(batch.images, layers_of(cells)), cells, encoder.prefix)

    key = f"timm-{json_hash([encoder.name, encoder.hash, settings.size, settings.precision])[:16]}"
    return of_images(name, key, cells, encode, images, checkpoint=encoder.hash)


def pooled(tokens: Mapping[int, Tensor], cells: Sequence[Cell], prefix: int) -> dict[Cell, Tensor]:
    """{layer: (B, prefix + N, D)} -> {cell: (B, D')}."""
    return {c: POOLINGS[c.pooling](tokens, c.layer, prefix) for c in cells}


def layers_of(cells: Sequence[Cell]) -> set[int]:
    """The layers whose tokens these cells take."""
    return {layer for c in cells for layer in POOLINGS[c.pooling].layers(c.layer)}


def of_images(name: str, key: str, cells: Sequence[Cell], encode: EncodeAt, images: Images, **known: Any) -> Subject:
    """Something that encodes images.

    Args:
        key: tells its features from others'.
        known: of Subject.
    """

    def read(split: str, cell: Cell) -> Features:
        return images.read(key, encode, cells, split, cell)

    return Subject(name, cells, read, (encode, images), **known)


def of_file(name: str, file: FeatureFile) -> Subject:
    """Features that somebody else read."""
    return Subject(name, [FROM_FILE], lambda split, cell: file.splits[split], None, checkpoint=file.hash)


def pixels(images: Images) -> Subject:
    """Raw pixels; whitened, they are the PCA's row."""
    name = pixels_name(images.splits.train.size)
    return of_images(
        name, "pixels", [PIXELS], lambda batch, cells: raw_pixels(batch.images), images, skip=["knn_whitened"]
    )


def pca(images: Images) -> Subject:
    """The principal components of whole training images, without their labels."""
    size, below = min(SIDE, images.splits.train.size), pixels(images)
    cells = [Cell(pooling=f"pca{n}") for n in PCA_DIMENSIONS if n < 3 * size**2]

    @functools.cache
    def widest() -> Affine:
        return whole_image_pca(below.read("train", PIXELS), max(PCA_DIMENSIONS))

    def through(cell: Cell, x: Tensor) -> Tensor:
        return widest().leading(int(cell.pooling[3:]))(x)

    def read(split: str, cell: Cell) -> Features:
        found = below.read(split, PIXELS)
        return Features(through(cell, found.x), found.y)

    def encode(batch: Batch, cells: Sequence[Cell]) -> Mapping[Cell, Tensor]:
        return {cell: through(cell, raw_pixels(batch.images)[PIXELS].cpu()) for cell in cells}

    return Subject("whole-image PCA", cells, read, (encode, images))


FLOORS: Mapping[str, Callable[[Images], Subject]] = {"pixels": pixels, "pca": pca}


def _cells_of_run(name: str, encoder: Encoder, settings: ProbeSettings) -> Iterator[Cell]:
    network = encoder.network
    half = network.encoder_layer
    _check_pooling(name, settings.pooling, network.prefix)
    layers = settings.layers or range((half + 1) // 2, (half + len(network.layers)) // 2 + 1)
    for layer in layers:
        for t in settings.t or [encoder.t]:
            for kind in settings.inputs:
                Encoder(encoder.objective, layer, t, kind == "noised")  # raises if it cannot be read so
                yield from _pooled_at(layer, t, kind, settings.pooling)


def _cells_of_timm(encoder: TimmEncoder, settings: ProbeSettings) -> Iterator[Cell]:
    depth = len(encoder.layers)
    _check_pooling(encoder.name, settings.pooling, encoder.prefix)
    for key, usual in (("t", None), ("inputs", ["clean"])):
        if getattr(settings, key) != usual:
            told = f"asks for noise levels, which timm={encoder.name} knows nothing of; leave {key} out"
            raise ConfigError(key, getattr(settings, key), told)
    for layer in settings.layers or range((depth + 1) // 2, depth + 1):
        if layer not in encoder.layers:
            raise ConfigError("layer", layer, f"is not one of the network's layers 1..{depth}")
        yield from _pooled_at(layer, 0, "clean", settings.pooling)


def _pooled_at(layer: int, t: int, kind: str, asked: Sequence[str]) -> Iterator[Cell]:
    """The cells of one layer, level and input."""
    for pooling in asked:
        first = POOLINGS[pooling].layers(layer)[0]
        if first < 1:
            told = f"takes the layers from {first} on where layer {layer} is read; there is none below 1"
            raise ConfigError("pooling", pooling, told)
        yield Cell(layer, t, kind, pooling)


def _check_pooling(name: str, asked: Sequence[str], prefix: int) -> None:
    for pooling in asked:
        if POOLINGS[pooling].cls and not prefix:
            told = f"needs a class token, and {name} hands out tokens of patches alone; use pooling=[mean] or [mean4]"
            raise ConfigError("pooling", pooling, told)

"""Build the encoders that a probe scores: of a run, of timm, of a feature file, and untrained baselines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldae.app.probing.feature_reading import EncodeAt, Images
from ldae.app.probing.settings import ProbeSettings
from ldae.core.errors import ConfigError
from ldae.core.files import json_hash
from ldae.core.types import Batch
from ldae.denoisers.base import Network
from ldae.export.encoder import Encoder, Run, weights_hash
from ldae.export.zoo import zoo_folder
from linear_probe.baselines import PIXELS, SIDE, pixels_name, raw_pixels, whole_image_pca
from linear_probe.feature_file import FeatureFile
from linear_probe.features import Encoded, FeatureKey, Features
from linear_probe.pooling import POOLINGS
from linear_probe.scaling import Affine
from linear_probe.subsets import Part

if TYPE_CHECKING:
    from ldae.export.timm_encoder import TimmEncoder

PCA_DIMENSIONS = (64, 128, 256)
PIXELS_SKIP = ("knn_whitened",)  # which whole-image PCA covers
FROM_FILE = FeatureKey(pooling="file")
UNTRAINED = "the same network, untrained"


@dataclass(frozen=True)
class ProbedEncoder:
    """Source of features to score (see linear_probe.features.Source).

    Attributes:
        name: name in the table.
        feature_keys: candidates for a protocol's selection.
        read: function from (split, feature key) to features.
        encode: function from a batch to features, and the images; None for a feature file.
        skip: protocols to leave out.
        checkpoint: hash of the weights; `none` for a baseline.
        step: training step of the checkpoint.
        kept_as: what the features depend on beside the data, as a key of results to keep; empty to keep none.
    """

    name: str
    feature_keys: Sequence[FeatureKey]
    read: Callable[[str, FeatureKey], Features]
    encode: tuple[EncodeAt, Images] | None
    skip: Sequence[str] = field(default=())
    checkpoint: str = "none"
    step: int = 0
    kept_as: str = ""

    def features(self, part: Part, feature_key: FeatureKey) -> Features:
        """Return the features of the images of a part, without augmentation."""
        features = self.read(part.split, feature_key)
        return features if part.rows is None else Features(part.of(features.x), part.of(features.y))

    def count(self, parts: Sequence[Part]) -> int:
        """Return the number of images in the parts."""
        return sum(self._size(part.split) if part.rows is None else len(part.rows) for part in parts)

    def _size(self, split: str) -> int:
        if self.encode is not None:
            return len(self.encode[1].split(split))  # without reading features
        return len(self.read(split, self.feature_keys[0]))

    def stream(
        self, parts: Sequence[Part], feature_keys: Sequence[FeatureKey], augment: str, batch: int, seed: int
    ) -> Iterator[Encoded]:
        """Yield endless batches of encoded augmented images (see linear_probe.features.Source)."""
        assert self.encode is not None, "checked by ProbeRunner.announce"
        encode, images = self.encode
        return images.stream(encode, parts, feature_keys, augment, batch, seed)


def run_encoder(name: str, run: Run, images: Images, settings: ProbeSettings, trained: bool = True) -> ProbedEncoder:
    """Return the encoder of a run at the configured layers, noise levels and inputs.

    Raises:
        ConfigError: a layer, step or pooling is invalid.
    """
    hash_, weights = (run.checkpoint.hash, settings.weights) if trained else ("none", "")
    encoder = Encoder(run.objective, precision=settings.precision, seed=settings.seed)
    feature_keys = list(_feature_keys_of_run(name, encoder, settings))

    def encode(batch: Batch, feature_keys: Sequence[FeatureKey]) -> Mapping[FeatureKey, Tensor]:
        features: dict[FeatureKey, Tensor] = {}
        needed = {single for c in feature_keys for single in c.single()}
        for t, view in sorted({(c.t, c.input) for c in needed}):
            keys = [c for c in needed if (c.t, c.input) == (t, view)]
            encoder.t, encoder.noised = t, view == "noised"
            tokens = encoder.tokens(batch.images, layers_of(keys), batch.index, class_token=encoder.network.prefix > 0)
            features |= pooled(tokens, keys, encoder.network.prefix)
        return {c: combined(c, features) for c in feature_keys}

    key = f"{hash_[:16] if trained else 'untrained'}-{weights}-{settings.precision}"
    kept_as = "" if trained else f"{weights_hash(run.objective)}-{settings.precision}"
    step = run.checkpoint.step * trained
    return image_encoder(name, key, feature_keys, encode, images, checkpoint=hash_, step=step, kept_as=kept_as)


def timm_encoder(images: Images, settings: ProbeSettings, device: str, trained: bool = True) -> ProbedEncoder:
    """Return a vision transformer of timm with weights from a file, or random ones.

    Raises:
        ConfigError: timm has no such network, the weights do not fit, or a layer or pooling is invalid.
    """
    from ldae.export.timm_encoder import TimmEncoder

    weights = Path(settings.checkpoint).expanduser() if settings.checkpoint and trained else None
    try:
        encoder = TimmEncoder(
            settings.timm or "", weights, settings.size, settings.precision, settings.seed, trained=trained
        ).to(device)
    except ConfigError as error:
        key = {"weights": "checkpoint"}.get(error.key, error.key)
        raise ConfigError(key, error.value, error.expectation) from None
    name = encoder.name if encoder.hash != "none" else f"{encoder.name}, random weights"
    name = name if trained else UNTRAINED
    feature_keys = list(_feature_keys_of_timm(encoder, settings))

    def encode(batch: Batch, feature_keys: Sequence[FeatureKey]) -> Mapping[FeatureKey, Tensor]:
        return pooled(encoder.tokens(batch.images, layers_of(feature_keys)), feature_keys, encoder.prefix)

    key = f"timm-{json_hash([encoder.name, encoder.hash, settings.size, settings.precision])[:16]}"
    return image_encoder(name, key, feature_keys, encode, images, checkpoint=encoder.hash)


def has_weights(settings: ProbeSettings) -> bool:
    """Return whether the network of timm has weights: from a file, a folder or the package."""
    name = settings.timm or ""
    return bool(settings.checkpoint) or name.startswith("local-dir:") or zoo_folder(name) is not None


def pooled(tokens: Mapping[int, Tensor], feature_keys: Sequence[FeatureKey], prefix: int) -> dict[FeatureKey, Tensor]:
    """Pool tokens: {layer: (B, prefix + N, D)} to {feature key: (B, D')}.

    Raises:
        ConfigError: a pooling into cells does not fit the number of patches.
    """
    try:
        return {c: POOLINGS[c.pooling](tokens, c.layer, prefix) for c in feature_keys}
    except ValueError as error:
        names = ",".join(sorted({c.pooling for c in feature_keys}))
        raise ConfigError("pooling", f"[{names}]", f"does not fit the network: {error}") from None


def combined(feature_key: FeatureKey, features: Mapping[FeatureKey, Tensor]) -> Tensor:
    """Return the features at a key, (B, D) each: those of one step, or of several concatenated or averaged."""
    each = [features[single] for single in feature_key.single()]
    return torch.stack(each).mean(0) if feature_key.combine == "mean" else torch.cat(each, dim=1)


def layers_of(feature_keys: Sequence[FeatureKey]) -> set[int]:
    """Return the layers whose tokens the feature keys need."""
    return {layer for c in feature_keys for layer in POOLINGS[c.pooling].layers(c.layer)}


def default_layers(network: Network) -> range:
    """Return the candidate layers of a run's encoder: from the middle of the encoder to the middle of the decoder."""
    half = network.encoder_layer
    return range((half + 1) // 2, (half + len(network.layers)) // 2 + 1)


def image_encoder(
    name: str, key: str, feature_keys: Sequence[FeatureKey], encode: EncodeAt, images: Images, **attributes: Any
) -> ProbedEncoder:
    """Return an encoder of images.

    Args:
        name: name in the table.
        key: name of its cached features.
        feature_keys: candidates for a protocol's selection.
        encode: function from a batch and feature keys to features.
        images: images to encode.
        attributes: further attributes of ProbedEncoder.
    """

    def read(split: str, feature_key: FeatureKey) -> Features:
        return images.read(key, encode, feature_keys, split, feature_key)

    return ProbedEncoder(name, feature_keys, read, (encode, images), **attributes)


def file_encoder(name: str, file: FeatureFile) -> ProbedEncoder:
    """Return the features of a file as an encoder."""
    return ProbedEncoder(name, [FROM_FILE], lambda split, feature_key: file.splits[split], None, checkpoint=file.hash)


def pixels(images: Images) -> ProbedEncoder:
    """Return raw pixels as features; whitened pixels are covered by `pca`."""
    name = pixels_name(images.splits.train.size)
    return image_encoder(
        name,
        "pixels",
        [PIXELS],
        lambda batch, feature_keys: raw_pixels(batch.images),
        images,
        skip=PIXELS_SKIP,
        kept_as="pixels",
    )


def pca(images: Images) -> ProbedEncoder:
    """Return principal components of whole training images as features."""
    size, raw_encoder = min(SIDE, images.splits.train.size), pixels(images)
    feature_keys = [FeatureKey(pooling=f"pca{n}") for n in PCA_DIMENSIONS if n < 3 * size**2]

    @functools.cache
    def widest() -> Affine:
        return whole_image_pca(raw_encoder.read("train", PIXELS), max(PCA_DIMENSIONS))

    def through(feature_key: FeatureKey, x: Tensor) -> Tensor:
        return widest().leading(int(feature_key.pooling[3:]))(x)

    def read(split: str, feature_key: FeatureKey) -> Features:
        raw = raw_encoder.read(split, PIXELS)
        return Features(through(feature_key, raw.x), raw.y)

    def encode(batch: Batch, feature_keys: Sequence[FeatureKey]) -> Mapping[FeatureKey, Tensor]:
        return {
            feature_key: through(feature_key, raw_pixels(batch.images)[PIXELS].cpu()) for feature_key in feature_keys
        }

    return ProbedEncoder("whole-image PCA", feature_keys, read, (encode, images), kept_as="pca")


BASELINES: Mapping[str, Callable[[Images], ProbedEncoder]] = {"pixels": pixels, "pca": pca}


def _feature_keys_of_run(name: str, encoder: Encoder, settings: ProbeSettings) -> Iterator[FeatureKey]:
    network = encoder.network
    _check_pooling(name, settings.pooling, network.prefix)
    for layer in settings.layers or default_layers(network):
        steps = settings.t or [encoder.t]
        for t, *further in [steps] if settings.combine else [[t] for t in steps]:
            for view in settings.inputs:
                for step in (t, *further):
                    Encoder(encoder.objective, layer, step, view == "noised")  # raises for an invalid layer or step
                for key in _pooled_at(layer, t, view, settings.pooling):
                    yield replace(key, further=tuple(further), combine=settings.combine or "")


def _feature_keys_of_timm(encoder: TimmEncoder, settings: ProbeSettings) -> Iterator[FeatureKey]:
    depth = len(encoder.layers)
    _check_pooling(encoder.name, settings.pooling, encoder.prefix)
    for key, usual in (("t", None), ("inputs", ["clean"]), ("combine", None)):
        if getattr(settings, key) != usual:
            message = f"selects noise levels, which timm={encoder.name} does not have; leave {key} out"
            raise ConfigError(key, getattr(settings, key), message)
    for layer in settings.layers or range((depth + 1) // 2, depth + 1):
        if layer not in encoder.layers:
            raise ConfigError("layer", layer, f"is not one of the network's layers 1..{depth}")
        yield from _pooled_at(layer, 0, "clean", settings.pooling)


def _pooled_at(layer: int, t: int, view: str, poolings: Sequence[str]) -> Iterator[FeatureKey]:
    """Yield the feature keys of one layer, noise level and input."""
    for pooling in poolings:
        first = POOLINGS[pooling].layers(layer)[0]
        if first < 1:
            message = f"takes the layers from {first} on where layer {layer} is read; there is none below 1"
            raise ConfigError("pooling", pooling, message)
        yield FeatureKey(layer, t, view, pooling)


def _check_pooling(name: str, poolings: Sequence[str], prefix: int) -> None:
    for pooling in poolings:
        if POOLINGS[pooling].cls and not prefix:
            message = f"needs a class token, and {name} has patch tokens alone; use pooling=[mean] or [mean4]"
            raise ConfigError("pooling", pooling, message)

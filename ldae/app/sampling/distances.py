"""Compare sets of images in the features of Inception, of a classifier, or of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldae.app.session import Session
from ldae.app.training.tokenizer_cache import classifier_config, ensure_perceptual
from ldae.core.errors import ConfigError
from ldae.core.files import has_intact_tensors, json_hash
from ldae.core.progress import Progress
from ldae.data.images import ImageSet, Splits
from ldae.export.encoder import load_encoder, weights_hash
from ldae.export.timm_encoder import TimmEncoder
from ldae.export.zoo import zoo_folder, zoo_names
from ldae.metrics.distances import (
    Moments,
    frechet_distance,
    frechet_distance_infinity,
    images_to_extrapolate,
    inception_score,
    kernel_distance,
    kernel_distance_error,
    metric_name,
    precision_recall,
)
from ldae.metrics.inception import Inception
from ldae.nn.perceptual import Classifier

BATCH = 250
FEWEST = 4  # images of a set: precision and recall need the third nearest neighbour
BANK = 10_000  # images of the reference for kernel distance, precision and recall

# images (B, 3, H, W) in [0, 1] -> features (B, D), class probabilities (B, K) or None
Read = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Reader:
    """Reads features of images.

    Args:
        name: name of the features, part of the names of scores.
        read: the network.
        session: session with device and cache.
    """

    def __init__(self, name: str, read: Read, session: Session):
        self.name, self.read, self.session = name, read, session

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (N, D) and probabilities of images (N, 3, H, W) in [0, 1], on the CPU."""
        outputs = []
        for part in images.split(BATCH):
            self.session.stop.poll()
            outputs.append(self.read(part.to(self.session.world.device)))
        features = torch.cat([f.float().cpu() for f, _ in outputs])
        return features, None if outputs[0][1] is None else torch.cat(
            [p.float().cpu() for _, p in outputs if p is not None]
        )

    def moments(self, images: Tensor) -> tuple[Moments, Tensor]:
        """Return moments and features of images (N, 3, H, W) in [0, 1]."""
        features, _ = self(images)
        return Moments.of([features], self.name), features

    def reference(self, images: ImageSet, fingerprint: str, split: str) -> tuple[Moments, Tensor]:
        """Return the cached moments of a whole set, and features of up to 10,000 of its images."""
        key = json_hash([self.name, fingerprint, split, images.size])[:20]
        path = self.session.cache / "moments" / f"{key}.safetensors"
        if not has_intact_tensors(path):
            self.session.writable(path.parent)
            batches = -(-len(images) // BATCH)
            progress = Progress(
                self.session.progress, batches, title=f"features of {split}", unit="batch", images=BATCH
            )
            read = progress.track(self.session.images(images, BATCH))
            Moments.of((self((x + 1) / 2)[0] for x in read), self.name).save(path)
        step = max(1, len(images) // BANK)
        some = images.subset(torch.arange(0, len(images), step).numpy())
        bank = torch.cat([self((x + 1) / 2)[0] for x in self.session.images(some, BATCH)])
        return Moments.load(path, self.name), bank


def check_count(key: str, count: int) -> None:
    """Refuse to compare a set of too few images.

    Raises:
        ConfigError: `key`, which says how many images there are, is below 4.
    """
    if count < FEWEST:
        message = f"is too few for features=; give at least {FEWEST} images, or leave features= out"
        raise ConfigError(key, count, message)


def reader_of(name: str, session: Session, splits: Splits, reference: str = "train") -> Reader:
    """Make the reader that `features=` names, before anything is sampled; every process of a run calls it.

    Args:
        name: classifier, inception, an encoder that ships with the package, or the folder of a pretraining run.
        session: device and data.
        splits: of the data.
        reference: split to compare with.

    Raises:
        ConfigError: there is no such reader, it is for images of another size, or the reference has too few images.
        CheckpointError, DataError: its weights are missing, or cannot be trained on these labels.
    """
    if (count := len(getattr(splits, reference))) < FEWEST:
        message = f"cannot be compared in: {reference} has {count} images, and {FEWEST} are needed; leave features= out"
        raise ConfigError("features", name, message)
    device = session.world.device
    if name == "inception":
        inception = Inception(device=device)
        return Reader(inception.features, inception, session)
    if name == "classifier":
        network, key = classifier(session, splits)
        label = f"classifier {key[:8]}-{weights_hash(network)[:8]}"
        return Reader(label, lambda x: network.features_and_probabilities(2 * x - 1), session)
    if zoo_folder(name):  # the same weights everywhere, so that distances of different machines compare
        shipped = TimmEncoder(name).to(device)
        return Reader(f"encoder {name}-{weights_hash(shipped)[:8]}", lambda x: (shipped(x), None), session)
    if not Path(name).is_dir():
        message = f"is no reader; give classifier, inception, {', '.join(zoo_names())}, or the folder of a run"
        raise ConfigError("features", name, message)
    encoder = load_encoder(Path(name), device=device)
    size = session.parts.data.size
    if encoder.image_shape != (3, size, size):
        message = f"reads images of {encoder.image_shape[1]} pixels a side, these have {size}; give another run"
        raise ConfigError("features", name, message)
    return Reader(f"encoder {Path(name).name}-{weights_hash(encoder)[:8]}", lambda x: (encoder(x), None), session)


def classifier(session: Session, splits: Splits) -> tuple[Classifier, str]:
    """Return the classifier of the perceptual loss and its cache key; train it if the cache has none."""
    sub = Session(classifier_config(session.config))
    sub.stop, sub.world = session.stop, session.world
    key = ensure_perceptual(sub, splits, "give features=RUN, the folder of a run, or features=inception")
    network = sub.parts.perceptual
    assert isinstance(network, Classifier)
    assert key is not None
    return network, key


def caveats(reader: Reader, images: int, reference: tuple[Moments, Tensor]) -> list[str]:
    """Return caveats about the scores of a set, in sentences.

    Args:
        images: number of images of the set.
        reference: moments and features of the reference set.
    """
    dimensions = len(reference[0].mean)
    sets = [("the set", images), ("the reference", reference[0].count)]
    return [
        f"{metric_name('frechet_distance', reader.name)}: {name} has {count:,} images, not more than the "
        f"{dimensions:,} dimensions of the features: its covariance is singular and the distance is biased upwards"
        for name, count in sets
        if count <= dimensions
    ]


def compare_sets(reader: Reader, images: Tensor, reference: tuple[Moments, Tensor], seed: int = 0) -> dict[str, float]:
    """Return {name with features: score} of images (N, 3, H, W) in [0, 1] against a reference.

    The extrapolated Frechet distance needs three images for each dimension of the features, and is absent with fewer.
    """
    features, probabilities = reader(images)
    moments, bank = reference
    scores = {"frechet_distance": frechet_distance(Moments.of([features], reader.name), moments)}
    if len(features) >= images_to_extrapolate(features.shape[1]):
        drawn = torch.Generator().manual_seed(seed)
        scores["frechet_distance_infinity"] = frechet_distance_infinity(features, moments, drawn)
    scores["kernel_distance"], _ = kernel_distance(features, bank, torch.Generator().manual_seed(seed))
    scores["kernel_distance_error"] = kernel_distance_error(features, bank, torch.Generator().manual_seed(seed))
    scores["precision"], scores["recall"] = precision_recall(bank, features)
    if probabilities is not None:
        scores["inception_score"], _ = inception_score(probabilities, splits=min(10, len(images)))
    return {metric_name(name, reader.name): value for name, value in scores.items()}

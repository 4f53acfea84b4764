"""What sets of images are compared in: Inception's features, or where its weights are absent the suite's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ldae.app.session import Session
from ldae.app.training.tokenizer_cache import classifier_config, ensure_perceptual
from ldae.core.errors import ConfigError
from ldae.core.files import has_intact_tensors, json_hash
from ldae.core.progress import Progress
from ldae.data.images import ImageSet, Splits
from ldae.export.encoder import load_encoder
from ldae.metrics.distances import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    metric_name,
    precision_recall,
)
from ldae.metrics.inception import Inception
from ldae.nn.perceptual import Classifier

BATCH = 250
FEWEST = 4  # images of a set: precision and recall are of the third neighbour among the others
BANK = 10_000  # images of the reference that kernel distance, precision and recall are worked out with

# images (B, 3, H, W) in [0, 1] -> features (B, D), class probabilities (B, K) or None
Read = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Reader:
    """Reads features of images.

    Args:
        name: whose they are: what scores in them are called after.
        read: the network.
        session: whose device and cache serve.
    """

    def __init__(self, name: str, read: Read, session: Session):
        self.name, self.read, self.session = name, read, session

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, 3, H, W) in [0, 1] -> features (N, D) and probabilities, on the CPU."""
        found = []
        for part in images.split(BATCH):
            self.session.stop.poll()
            found.append(self.read(part.to(self.session.world.device)))
        features = torch.cat([f.float().cpu() for f, _ in found])
        return features, None if found[0][1] is None else torch.cat(
            [p.float().cpu() for _, p in found if p is not None]
        )

    def moments(self, images: Tensor) -> tuple[Moments, Tensor]:
        """Moments and features of images (N, 3, H, W) in [0, 1] at hand."""
        features, _ = self(images)
        return Moments.of([features], self.name), features

    def reference(self, images: ImageSet, fingerprint: str, split: str) -> tuple[Moments, Tensor]:
        """Moments of a whole set, worked out once and kept in the user's cache, and features of up to 10,000 of it."""
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


def reader_of(kind: str, session: Session, splits: Splits, reference: str = "train") -> Reader:
    """Make the reader that `features=` names, before anything is sampled; every process of a run calls it.

    Args:
        kind: classifier, inception, or the folder of a run of pretrain.py.
        session: machine and data.
        splits: of the data.
        reference: the split that is compared with.

    Raises:
        ConfigError: there is no such reader, it is for images of another size, or the reference has too few images.
        CheckpointError, DataError: its weights are missing, or cannot be trained on these labels.
    """
    if (count := len(getattr(splits, reference))) < FEWEST:
        message = f"cannot be compared in: {reference} has {count} images, and {FEWEST} are needed; leave features= out"
        raise ConfigError("features", kind, message)
    device = session.world.device
    if kind == "inception":
        inception = Inception(device=device)
        return Reader(inception.features, inception, session)
    if kind == "classifier":
        network, key = classifier(session, splits)
        name = f"classifier {key[:8]}-{weights_digest(network)}"
        return Reader(name, lambda x: network.features_and_probabilities(2 * x - 1), session)
    if not Path(kind).is_dir():
        raise ConfigError("features", kind, "is no reader; give classifier, inception, or the folder of a run")
    encoder = load_encoder(Path(kind), device=device)
    size = session.parts.data.size
    if encoder.image_shape != (3, size, size):
        message = f"reads images of {encoder.image_shape[1]} pixels a side, these have {size}; give another run"
        raise ConfigError("features", kind, message)
    return Reader(f"encoder {Path(kind).name}-{weights_digest(encoder)}", lambda x: (encoder(x), None), session)


def weights_digest(network: nn.Module) -> str:
    """Eight hexadecimal digits that change with the weights: distances in other features cannot be compared."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def classifier(session: Session, splits: Splits) -> tuple[Classifier, str]:
    """Return the classifier of the perceptual loss, trained on the data's labels if the cache has none yet; and its key."""
    sub = Session(classifier_config(session.config))
    sub.stop, sub.world = session.stop, session.world
    key = ensure_perceptual(sub, splits)
    network = sub.parts.perceptual
    assert isinstance(network, Classifier)
    assert key is not None
    return network, key


def caveats(reader: Reader, images: int, reference: tuple[Moments, Tensor]) -> list[str]:
    """Return what makes the scores of a set doubtful, in sentences.

    Args:
        images: how many the set has.
        reference: moments and features that it is compared with.
    """
    dimensions = len(reference[0].mean)
    sets = [("the set", images), ("the reference", reference[0].count)]
    return [
        f"{metric_name('frechet_distance', reader.name)}: {name} has {count:,} images, not more than the "
        f"{dimensions:,} dimensions of the features: its covariance is singular and the distance is biased upwards"
        for name, count in sets
        if count <= dimensions
    ]


def compared(reader: Reader, images: Tensor, reference: tuple[Moments, Tensor], seed: int = 0) -> dict[str, float]:
    """Scores of a set of images (N, 3, H, W) in [0, 1] against a reference, by names that tell whose features."""
    features, probabilities = reader(images)
    moments, bank = reference
    found = {"frechet_distance": frechet_distance(Moments.of([features], reader.name), moments)}
    found["kernel_distance"], _ = kernel_distance(features, bank, torch.Generator().manual_seed(seed))
    found["precision"], found["recall"] = precision_recall(bank, features)
    if probabilities is not None:
        found["inception_score"], _ = inception_score(probabilities, splits=min(10, len(images)))
    return {metric_name(name, reader.name): value for name, value in found.items()}

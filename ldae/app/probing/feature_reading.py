"""Extract features of images: cached on disk, or encoded under augmentation at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldae.app.probing.robustness import CommonCorruption
from ldae.app.session import Session
from ldae.core.files import json_hash, remove_temporary
from ldae.core.progress import Progress
from ldae.core.rng import uniforms
from ldae.core.types import Batch
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import Loader, in_order
from ldae.data.transforms import Augment, PadCrop, RandomResizedCrop
from linear_probe.features import Bank, Encoded, FeatureKey, Features, extract
from linear_probe.subsets import OUTLIERS, Part

# augmentations that protocols name
AUGMENTS: Mapping[str, Callable[[], Augment]] = {
    "random_resized_crop": lambda: RandomResizedCrop(low=0.08, high=1.0, flip=0.5),
    "pad_crop": lambda: PadCrop(pad=4, flip=0.5),
}
VIEWS = RandomResizedCrop(low=0.2, high=1.0, flip=0.5)  # two random views of an image

SPLITS = ("train", "holdout", "test")
VIEW_OF_OUTLIERS = 2**20  # a number that no epoch of augmentation reaches
NOISE_PER_IMAGE = "noise is a function of the image"  # part of the key of features with input noise

# batch (`index` is unique across splits), feature keys -> {feature key: (B, D)}
EncodeAt = Callable[[Batch, Sequence[FeatureKey]], Mapping[FeatureKey, Tensor]]


class Images:
    """Images of a data set, and their features.

    Args:
        session: device and data.
        splits: the images.
        out: folder of cached features.
        batch: images per forward pass.
        seed: seed of augmentations and corruptions.
        outliers: splits of another data set, whose test images are to be told apart; None for none.
    """

    def __init__(
        self, session: Session, splits: Splits, out: Path, batch: int, seed: int, outliers: Splits | None = None
    ):
        self.session, self.splits, self.out, self.batch, self.seed = session, splits, out, batch, seed
        self.outliers = outliers
        remove_temporary(out / "features")
        self.banks: dict[tuple[str, str], Bank] = {}

    def split(self, name: str) -> ImageSet:
        """Return a split; that of a corrupted split without its corruption."""
        if name == OUTLIERS:
            assert self.outliers is not None, "checked by ProbeSettings"
            return self.outliers.test
        images: ImageSet = getattr(self.splits, name.partition("~")[0])
        return images

    def read(
        self, key: str, encode: EncodeAt, feature_keys: Sequence[FeatureKey], split: str, feature_key: FeatureKey
    ) -> Features:
        """Return features of a split: all feature keys in one pass for selection, those of the same pass elsewhere."""
        keys = feature_keys if split in ("train", "holdout") else in_one_pass(feature_key, feature_keys, split)
        images_of = self.outliers if split == OUTLIERS and self.outliers is not None else self.splits
        of = [key, images_of.fingerprint, split, [str(c) for c in keys], self.seed]
        name = json_hash(of + [NOISE_PER_IMAGE] * any(c.input == "noised" for c in keys))[:20]
        if (key, name) not in self.banks:
            images, folder = self.split(split), self.out / "features" / f"{key}-{split}-{name}"
            corruption = CommonCorruption.of_split(split)

            def read(batch: Batch) -> Mapping[FeatureKey, Tensor]:
                batch = batch if corruption is None else corruption(batch, self.seed)
                return encode(numbered(batch, split), keys)

            self.banks[key, name] = extract(
                read,
                keys,
                self.with_progress(images, split),
                len(images),
                folder,
            )
        return self.banks[key, name][feature_key]

    def with_progress(self, images: ImageSet, split: str) -> Iterator[Batch]:
        """Yield every image once without augmentation, and report progress."""
        batches, title = -(-len(images) // self.batch), f"features of {split}"
        progress = Progress(self.session.progress, batches, title=title, unit="batch", images=self.batch)
        yield from progress.track(self.in_order(images))

    def in_order(self, images: ImageSet) -> Iterator[Batch]:
        """Yield every image once, without augmentation."""
        session = self.session
        return in_order(images, self.batch, session.world.device, self.workers, session.stop.poll)

    @property
    def workers(self) -> int:
        """Return the number of worker processes that read images."""
        return int(self.session.config["data"]["workers"])

    def augmented(self, parts: Sequence[Part], augment: str, batch: int, seed: int) -> Iterator[Batch]:
        """Yield endless batches of all parts, augmented differently in every epoch."""
        images = self.split("train").subset(np.arange(0))
        images.ids = np.sort(np.concatenate([_ids(self.split(part.split), part) for part in parts]))
        loader = Loader(images, AUGMENTS[augment](), batch, seed, self.session.world.device, workers=self.workers)
        return loader.batches(0)

    def stream(
        self,
        encode: EncodeAt,
        parts: Sequence[Part],
        feature_keys: Sequence[FeatureKey],
        augment: str,
        batch: int,
        seed: int,
    ) -> Iterator[Encoded]:
        """Yield features and labels of augmented batches, on the CPU."""
        per_epoch = sum(len(_ids(self.split(part.split), part)) for part in parts) // batch
        for step, augmented in enumerate(self.augmented(parts, augment, batch, seed)):
            whole, pieces = numbered(augmented, "train", view=1 + step // per_epoch), []
            for start in range(0, len(whole), self.batch):
                self.session.stop.poll()
                pieces.append(encode(whole.rows(start, start + self.batch), feature_keys))
            yield {c: torch.cat([p[c] for p in pieces]).float().cpu() for c in feature_keys}, augmented.labels.cpu()

    def views(
        self, encode: EncodeAt, feature_keys: Sequence[FeatureKey], images: ImageSet, view: int
    ) -> dict[FeatureKey, Tensor]:
        """Return {feature key: (N, D)} of one random view of each image: cropped, resized, perhaps mirrored."""
        parts_of: dict[FeatureKey, list[Tensor]] = {feature_key: [] for feature_key in feature_keys}
        for batch in self.in_order(images):
            seen = augmented_view(batch, self.seed, view)
            for feature_key, x in encode(numbered(seen, "holdout", view=1 + view), feature_keys).items():
                parts_of[feature_key].append(x.float().cpu())
        return {feature_key: torch.cat(parts) for feature_key, parts in parts_of.items()}


def in_one_pass(feature_key: FeatureKey, feature_keys: Sequence[FeatureKey], split: str) -> list[FeatureKey]:
    """Return the feature keys that are extracted with a selected one: other layers of the same pass.

    Other protocols may select these. Of a corrupted split, where a pass to the deepest layer has to be made for each
    corruption, the selected one alone.
    """
    if "~" in split:
        return [feature_key]
    return [c for c in feature_keys if replace(c, layer=feature_key.layer, pooling=feature_key.pooling) == feature_key]


def augmented_view(batch: Batch, seed: int, view: int) -> Batch:
    """Return one random view of each image: a crop of 20 to 100 % of the area, resized, flipped half of the time."""
    return replace(batch, images=VIEWS(batch.images, uniforms(seed, view, batch.index, VIEWS.n)))


def numbered(batch: Batch, split: str, view: int = 0) -> Batch:
    """Return a batch of one split whose `index` is unique across splits and views.

    Train and test may each count their images from 0; the noise of an encoder's input is a function of this number.

    Args:
        view: 0 for the images without augmentation, 1 and above for augmented ones.
    """
    if split == OUTLIERS:
        split, view = "test", VIEW_OF_OUTLIERS
    return replace(batch, index=batch.index + (view * len(SPLITS) + SPLITS.index(split.partition("~")[0])) * 2**40)


def _ids(images: ImageSet, part: Part) -> np.ndarray:
    return images.ids if part.rows is None else images.ids[part.rows.numpy()]

"""Base class of data sets, and their division into train, hold-out and test."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError, abbreviate
from ldae.core.files import json_hash
from ldae.core.rng import seed_of, uniforms
from ldae.core.types import Count, Fraction, Natural
from ldae.data.cache import Bad, Context
from ldae.data.folder import Listing, concatenate, find_linked_images
from ldae.data.images import ImageSet, MemoryImages, Splits

MAX_SIZE = 8192  # pixels of a side: an RGB image of this size has 192 MiB
SAMPLED = 512  # images whose range is checked
MIN_HOLDOUT = 50  # images; an accuracy on fewer is too uncertain to choose by

Read = Callable[[Listing], tuple[ImageSet, Bad, str]]


@dataclass(frozen=True)
class Division:
    """Division of a data set into train, hold-out and test.

    Attributes:
        holdout: fraction of train that is held out for choosing hyperparameters.
        test: fraction of all images for the test split if the data has none.
        split_seed: seed of the division; separate from the run's seed, so that runs share their splits.
        fold: K/N takes the K-th of N parts of all images for the test split, if the data has none; the parts are
            disjoint. None takes the fraction `test`.

    Raises:
        ConfigError: `fold` is not of this form.
    """

    holdout: Fraction = 0.1
    test: Fraction = 0.2
    split_seed: Natural = 0
    fold: str | None = None

    def __post_init__(self) -> None:
        if self.fold is not None:
            number, count = (int(part) if part.isdecimal() else 0 for part in f"{self.fold}/".split("/")[:2])
            if self.fold != f"{number}/{count}" or not 1 <= number <= count or count < 2:
                raise ConfigError("fold", self.fold, "must be K/N, the K-th of N parts, e.g. 1/5")

    @property
    def test_range(self) -> tuple[float, float]:
        """Return which part of a random order of all images is the test split, as two fractions."""
        if self.fold is None:
            return 0.0, self.test
        number, count = map(int, self.fold.split("/"))
        return (number - 1) / count, number / count

    def identity(self) -> tuple[Any, ...]:
        """Return what a division depends on, for the fingerprint of the data."""
        fold = () if self.fold is None else (self.fold,)
        return (self.holdout, self.test, self.split_seed, *fold)


class Dataset(ABC):
    """Base class of data sets.

    Attributes:
        label_hint: advice on adding classes, for messages.
        classifies: whether classification accuracy is measured on the data set.

    Args:
        size: side of the images in pixels.
        division: division into train, hold-out and test.

    Raises:
        ConfigError: the size is too large.
    """

    label_hint: ClassVar[str] = "name a data set with classes"
    classifies: ClassVar[bool] = True

    def __init__(self, size: Count, division: Division):
        if size > MAX_SIZE:
            raise ConfigError("size", size, f"must be at most {MAX_SIZE} pixels")
        self.size, self.division = size, division

    @property
    def name(self) -> str:
        """Return the name of the data set in result lines."""
        return type(self).__name__

    @abstractmethod
    def open(self, context: Context) -> Splits:
        """Find or read the images and divide them.

        Raises:
            DataError: the images are missing, or too many are unreadable.
        """

    def _open_listings(
        self, listings: Mapping[str, Listing], read: Read, names: Mapping[str, str], notes: Sequence[str] = ()
    ) -> Splits:
        """Return the splits of listed images; splits without a listing are taken from train.

        Args:
            listings: listing of `train`, and optionally of `holdout` and `test`.
            read: function that reads the images of a listing.
            names: names of the splits in messages.
            notes: notes on images that are not read.

        Raises:
            DataError: a split has a class that train lacks, or train has no readable images.
        """
        notes = list(notes)
        listings = dict(self._match_labels(listings, names, notes))
        notes += [note for listing in listings.values() for note in listing.notes]
        for (a, first), (b, second) in itertools.combinations(listings.items(), 2):
            if both := find_linked_images(first, second):
                notes.append(
                    f"{len(both)} images of {names[b]} are also images of {names[a]} (links), so scores on {names[b]} "
                    f"are too high: {abbreviate([f'{y} = {x}' for x, y in both], 2)}"
                )
        train, holdout_listing, test = (listings.get(key) for key in ("train", "holdout", "test"))
        assert train is not None
        images, bad, digest = read(train if holdout_listing is None else concatenate(train, holdout_listing))
        holdout = None
        if holdout_listing is not None:
            bad_names = {name for name, _ in bad}
            count, ids = sum(name not in bad_names for name in train.files), np.arange(len(images))
            images, holdout = images.subset(ids[:count]), images.subset(ids[count:])
        if test is None:
            return self._make_splits(images, None, train.classes, [digest], bad, holdout, notes)
        test_images, test_bad, test_digest = read(test)
        digests = [digest, test_digest]
        return self._make_splits(images, test_images, train.classes, digests, bad + test_bad, holdout, notes)

    def _match_labels(
        self, listings: Mapping[str, Listing], names: Mapping[str, str], notes: list[str]
    ) -> Iterator[tuple[str, Listing]]:
        """Yield the listings that agree with train in having labels or none; add a note on the others to `notes`."""
        train = listings["train"]
        if not train.labelled:
            notes.append(
                f"the {len(train.files)} images of {names['train']} have no classes; pretraining needs none, "
                f"scores do: {self.label_hint}"
            )
        for key, listing in listings.items():
            if not train.labelled:
                yield key, listing.without_labels()
            elif not listing.labelled:
                notes.append(
                    f"the {len(listing.files)} images of {names[key]} have no classes and are passed over; "
                    f"the {'hold-out' if key == 'holdout' else 'test split'} is cut from {names['train']}"
                )
            elif (last := max(listing.labels)) >= len(train.classes):
                raise DataError(f"{names[key]} has class {last}, {names['train']} has {len(train.classes)} classes")
            else:
                yield key, listing

    def _split_off(self, whole: ImageSet, begin: float, end: float, salt: int) -> tuple[ImageSet, ImageSet]:
        """Return (the rest, a part) of a set: the fractions from `begin` to `end` of a stratified random order."""
        order = _stratified_order(whole.labels[whole.ids], seed_of(self.division.split_seed, salt))
        chosen = np.sort(order[round(begin * len(whole)) : round(end * len(whole))])
        rest = np.setdiff1d(np.arange(len(whole)), chosen)
        return whole.subset(rest), whole.subset(chosen)

    def _make_splits(
        self,
        train: ImageSet,
        test: ImageSet | None,
        classes: Sequence[str],
        digests: list[str],
        bad: Bad,
        holdout: ImageSet | None = None,
        notes: Sequence[str] = (),
    ) -> Splits:
        if test is None:
            train, test = self._split_off(train, *self.division.test_range, salt=1)
        elif self.division.fold is not None:
            raise no_folds(self.division.fold)
        if holdout is None:
            train, holdout = self._split_off(train, 0, self.division.holdout, salt=2)
        if not len(train):
            raise DataError(f"data: no image is left to train on with {self.division}")
        fingerprint = json_hash([digests, self.size, self.division.identity()])
        splits = Splits(train, holdout, test, list(classes), fingerprint, tuple(bad))
        scoring = scoring_notes(splits) if self.classifies else ()
        return replace(splits, notes=(*notes, *range_notes(train), *scoring))


def no_folds(fold: str) -> ConfigError:
    """Return the error for folds of a data set that has a test split."""
    return ConfigError("fold", fold, "divides data without a test split, and this has one; leave it out")


def range_notes(images: ImageSet) -> Iterator[str]:
    """Yield a sentence if images in memory use less than an eighth of the range from black to white."""
    if not isinstance(images, MemoryImages):
        return
    some = torch.from_numpy(images.ids[:: max(1, len(images) // SAMPLED)])
    brightest = int(images.pixels[some, :3].max())
    if 0 < brightest < 256 // 8:
        yield (
            f"the brightest value of the training images is {brightest} of 255: if their files use a part of the range "
            "of their type (12 bits in 16, say), give data.range=[LOW,HIGH], the numbers that are black and white"
        )


def scoring_notes(splits: Splits) -> Iterator[str]:
    """Yield a sentence for each property of the splits that makes an accuracy on them unreliable."""
    if len(splits.classes) == 1:
        yield f"the images have one class ({splits.classes[0]}): there is nothing to score"
    if len(splits.classes) < 2:
        return
    if 0 < (count := len(splits.holdout)) < MIN_HOLDOUT:
        yield (
            f"the hold-out has {count} images: one of them is {100 / count:.2g} points of accuracy, and choices made "
            f"on it are uncertain (where it is cut from train, data.holdout is its share)"
        )
    train_labels = splits.train.labels[splits.train.ids]
    holdout_labels = splits.holdout.labels[splits.holdout.ids]
    for name, part, labels in (
        ("hold-out", splits.holdout, train_labels),
        ("test split", splits.test, np.concatenate([train_labels, holdout_labels])),
    ):
        missing = np.isin(part.labels[part.ids], labels, invert=True)
        if missing.any():
            lacking = [splits.classes[label] for label in np.unique(part.labels[part.ids][missing])]
            yield f"{missing.sum()} images of the {name} are of classes without training images: {abbreviate(lacking)}"


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a stratified random order of the positions: every prefix is class-balanced up to rounding."""
    u = uniforms(seed, 0, torch.arange(len(labels)), 2).double().numpy()
    rank = np.empty(len(labels))  # of an image in its class, scaled to [0, 1)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = rows[np.argsort(u[rows, 0], kind="stable")]
        rank[shuffled] = (np.arange(len(rows)) + u[shuffled, 1]) / len(rows)
    return np.argsort(rank, kind="stable")

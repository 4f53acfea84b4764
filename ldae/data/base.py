"""A data set: listed, read, and divided into train, hold-out and test."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash
from ldae.core.rng import seed_of, uniforms
from ldae.core.types import Count, Fraction, Natural
from ldae.data.cache import Bad, Context
from ldae.data.folder import Listing, joined, shared
from ldae.data.images import ImageSet, Splits
from ldae.data.layout import some

LARGEST = 8192  # pixels of a side: a picture of this size is 192 MiB of bytes
FEW = 50  # images of a hold-out below which an accuracy on it says little

Read = Callable[[Listing], tuple[ImageSet, Bad, str]]


@dataclass(frozen=True)
class Division:
    """How a data set is divided.

    Attributes:
        holdout: share of train that is set aside for every choice.
        test: share of all images for the test split, where the data has none of its own.
        split_seed: seed of the division; not the run's, so that runs compare.
    """

    holdout: Fraction = 0.1
    test: Fraction = 0.2
    split_seed: Natural = 0


class Dataset(ABC):
    """Where images come from.

    Attributes:
        label_hint: how images of this kind are given their classes.
        classifies: whether the classes are what is scored.

    Args:
        size: side of the images in pixels.
        division: into train, hold-out and test.

    Raises:
        ConfigError: the size is none that pictures have.
    """

    label_hint: ClassVar[str] = "name a data set with classes"
    classifies: ClassVar[bool] = True

    def __init__(self, size: Count, division: Division):
        if size > LARGEST:
            raise ConfigError("size", size, f"must be at most {LARGEST} pixels")
        self.size, self.division = size, division

    @property
    def name(self) -> str:
        """What result lines call it."""
        return type(self).__name__

    @abstractmethod
    def open(self, context: Context) -> Splits:
        """Reads or finds the images and divides them.

        Raises:
            DataError: they are missing, or too many are unreadable.
        """

    def _opened(
        self, listings: Mapping[str, Listing], read: Read, names: Mapping[str, str], notes: Sequence[str] = ()
    ) -> Splits:
        """Return the splits of listed images; what there is no listing of is cut from train.

        Args:
            listings: of `train`, and perhaps of `holdout` and `test`.
            read: reads the images of a listing.
            names: of the splits, for what is said of them.
            notes: what is to be said already.

        Raises:
            DataError: a split has a class that train lacks, or train has no images that can be read.
        """
        remarks = list(notes)
        listings = dict(self._with_equal_labels(listings, names, remarks))
        remarks += [note for listing in listings.values() for note in listing.notes]
        for (a, first), (b, second) in itertools.combinations(listings.items(), 2):
            if both := shared(first, second):
                remarks.append(
                    f"{len(both)} images of {names[b]} are images of {names[a]} too (links), so scores on {names[b]} "
                    f"flatter: {some([f'{y} = {x}' for x, y in both], 2)}"
                )
        train, held, test = (listings.get(key) for key in ("train", "holdout", "test"))
        assert train is not None
        images, bad, mark = read(train if held is None else joined(train, held))
        holdout = None
        if held is not None:
            lost = {name for name, _ in bad}
            count, ids = sum(name not in lost for name in train.files), np.arange(len(images))
            images, holdout = images.subset(ids[:count]), images.subset(ids[count:])
        if test is None:
            return self._splits(images, None, train.classes, [mark], bad, holdout, remarks)
        tested, test_bad, test_mark = read(test)
        return self._splits(images, tested, train.classes, [mark, test_mark], bad + test_bad, holdout, remarks)

    def _with_equal_labels(
        self, listings: Mapping[str, Listing], names: Mapping[str, str], remarks: list[str]
    ) -> Iterator[tuple[str, Listing]]:
        """Yield the listings that have labels if train has, and none have if it has not."""
        train = listings["train"]
        if not train.labelled:
            remarks.append(
                f"the {len(train.files)} images of {names['train']} have no classes; pretraining needs none, "
                f"scores do: {self.label_hint}"
            )
        for key, listing in listings.items():
            if not train.labelled:
                yield key, listing.without_labels()
            elif not listing.labelled:
                remarks.append(
                    f"the {len(listing.files)} images of {names[key]} have no classes and are passed over; "
                    f"the {'hold-out' if key == 'holdout' else 'test split'} is cut from {names['train']}"
                )
            elif (last := max(listing.labels)) >= len(train.classes):
                raise DataError(f"{names[key]} has class {last}, {names['train']} has {len(train.classes)} classes")
            else:
                yield key, listing

    def _divided(self, whole: ImageSet, fraction: float, salt: int) -> tuple[ImageSet, ImageSet]:
        """(the rest, a `fraction` of the set), drawn by seed, every class in proportion."""
        order = _proportional_order(whole.labels[whole.ids], seed_of(self.division.split_seed, salt))
        chosen = np.sort(order[: round(fraction * len(whole))])
        rest = np.setdiff1d(np.arange(len(whole)), chosen)
        return whole.subset(rest), whole.subset(chosen)

    def _splits(
        self,
        train: ImageSet,
        test: ImageSet | None,
        classes: Sequence[str],
        marks: list[str],
        bad: Bad,
        holdout: ImageSet | None = None,
        notes: Sequence[str] = (),
    ) -> Splits:
        if test is None:
            train, test = self._divided(train, self.division.test, salt=1)
        if holdout is None:
            train, holdout = self._divided(train, self.division.holdout, salt=2)
        if not len(train):
            raise DataError(f"data: no image is left to train on with {self.division}")
        fingerprint = json_hash([marks, self.size, astuple(self.division)])
        splits = Splits(train, holdout, test, list(classes), fingerprint, tuple(bad))
        return replace(splits, notes=(*notes, *(scoring_notes(splits) if self.classifies else ())))


def scoring_notes(splits: Splits) -> Iterator[str]:
    """Yield a sentence on each reason why an accuracy on these images means little."""
    if len(splits.classes) == 1:
        yield f"the images have one class ({splits.classes[0]}): there is nothing to score"
    if len(splits.classes) < 2:
        return
    if 0 < (count := len(splits.holdout)) < FEW:
        yield (
            f"the hold-out has {count} images: one of them is {100 / count:.2g} points of accuracy, and choices made "
            f"on it are uncertain (where it is cut from train, data.holdout is its share)"
        )
    for name, part, known in (
        ("hold-out", splits.holdout, splits.train),
        ("test split", splits.test, splits.development),
    ):
        missing = np.isin(part.labels[part.ids], known.labels[known.ids], invert=True)
        if missing.any():
            lacking = [splits.classes[label] for label in np.unique(part.labels[part.ids][missing])]
            yield f"{missing.sum()} images of the {name} are of classes without training images: {some(lacking)}"


def _proportional_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions in an order each of whose beginnings holds every class in proportion, as nearly as whole numbers go."""
    u = uniforms(seed, 0, torch.arange(len(labels)), 2).double().numpy()
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = rows[np.argsort(u[rows, 0], kind="stable")]
        place[shuffled] = (np.arange(len(rows)) + u[shuffled, 1]) / len(rows)
    return np.argsort(place, kind="stable")

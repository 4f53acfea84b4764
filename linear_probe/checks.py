"""Checks that an accuracy means something: labels there are, several classes, enough images of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_HELD_OUT = 50  # images: one of fewer moves a choice by more than 2 points
FEWEST_OF_CLASS = 5  # training images
NAMED = 5  # classes that a sentence names at most


class NothingToScoreError(ValueError):
    """The labels allow no score: a clause that finishes the sentence `DATA ...`."""


def check_labels(
    train: Tensor, holdout: Tensor, scored: Tensor, classes: Sequence[str], split: str = "test"
) -> list[str]:
    """Return a warning for every property of the labels that makes an accuracy doubtful.

    Args:
        train: labels (N,) int64 of the images that a probe is fitted on, negative where an image has none.
        holdout: of those on which choices are made and which join `train` then; empty if there are none.
        scored: of those that the accuracy is of.
        classes: their names.
        split: name of the split of `scored`.

    Returns:
        Whole sentences; none if there is nothing to warn of.

    Raises:
        NothingToScoreError: labels are missing, there is one class alone, or a split has no images.
    """
    known, every = torch.cat([train, holdout]), torch.cat([train, holdout, scored])
    if missing := int((every < 0).sum()):
        raise NothingToScoreError(
            f"has no labels for {missing:,} of {len(every):,} images: there is nothing to score; give labels (a folder "
            "for each class, the class in each record, or train_y and test_y), or name a labelled set with data="
        )
    if not len(train) or not len(scored):
        raise NothingToScoreError(f"has no image in {split if len(train) else 'train'}: there is nothing to score")
    if len(known.unique()) < 2:
        name = classes[int(known[0])]
        raise NothingToScoreError(
            f"has a single class, {name}: there is nothing to score; give images of two classes or more"
        )
    return [*_of_sizes(holdout, scored, split), *_of_classes(known, scored, classes, split)]


def chance(train: Tensor, scored: Tensor) -> float:
    """Return the accuracy in percent on labels `scored` (M,) of always answering the class most frequent in `train`."""
    return 100 * float((scored == train.bincount().argmax()).double().mean())


def _of_sizes(holdout: Tensor, scored: Tensor, split: str) -> list[str]:
    found = []
    if 0 < len(holdout) < FEWEST_HELD_OUT:
        found.append(f"the hold-out has {_images(len(holdout))}: one is {100 / len(holdout):.1f} points in each choice")
    if len(scored) < FEWEST_HELD_OUT:
        found.append(f"{split} has {_images(len(scored))}: one is {100 / len(scored):.1f} points")
    return found


def _of_classes(known: Tensor, scored: Tensor, classes: Sequence[str], split: str) -> list[str]:
    found, counts = [], known.bincount(minlength=len(classes))
    if scarce := ((counts > 0) & (counts < FEWEST_OF_CLASS)).nonzero().flatten().tolist():
        found.append(f"fewer than {FEWEST_OF_CLASS} training images of {_named(scarce, classes)}")
    there = scored.bincount(minlength=len(counts))
    absent = (there > 0) & (torch.nn.functional.pad(counts, (0, len(there) - len(counts))) == 0)
    if names := absent.nonzero().flatten().tolist():
        wrong = _images(int(there[absent].sum()))
        found.append(f"train has no image of {_named(names, classes)}: {wrong} of {split} cannot be right")
    return found


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _named(labels: Sequence[int], classes: Sequence[str]) -> str:
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"class{'es' * (len(names) > 1)} {', '.join(names[:NAMED])}{more}"

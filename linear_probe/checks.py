"""Check that labels allow an accuracy: every image has one, there are several classes, each with enough images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_HELD_OUT = 50  # images; with fewer, one image moves an accuracy by more than 2 points
FEWEST_OF_CLASS = 5  # training images of a class
NAMED = 5  # maximum number of classes that a sentence names


class NothingToScoreError(ValueError):
    """Error for labels that allow no score; its message completes a sentence that begins with the data's name."""


def check_labels(
    train: Tensor, holdout: Tensor, scored: Tensor, classes: Sequence[str], split: str = "test"
) -> list[str]:
    """Return a warning for every property of the labels that makes an accuracy doubtful.

    Args:
        train: (N,) int64 labels of the training images; negative for an image without one.
        holdout: labels of the images that settings are selected on, which the final fit includes; may be empty.
        scored: labels of the images that the accuracy is measured on.
        classes: names of the classes.
        split: name of the split of `scored`.

    Returns:
        Sentences without a final stop; empty if there is no doubt.

    Raises:
        NothingToScoreError: labels are missing, there is only one class, or a split has no images.
    """
    fitted, every = torch.cat([train, holdout]), torch.cat([train, holdout, scored])
    if missing := int((every < 0).sum()):
        raise NothingToScoreError(
            f"has no labels for {missing:,} of {len(every):,} images: there is nothing to score; give labels (a folder "
            "for each class, the class in each record, or train_y and test_y), or name a labelled set with data="
        )
    if not len(train) or not len(scored):
        raise NothingToScoreError(f"has no image in {split if len(train) else 'train'}: there is nothing to score")
    if len(fitted.unique()) < 2:
        name = classes[int(fitted[0])]
        raise NothingToScoreError(
            f"has a single class, {name}: there is nothing to score; give images of two classes or more"
        )
    return [*_of_sizes(holdout, scored, split), *_of_classes(fitted, scored, classes, split)]


def check_features(x: Tensor) -> list[str]:
    """Return a warning, without a final stop, if the features (N, D) of all images are equal up to rounding."""
    spread, size = float((x.amax(0) - x.amin(0)).max()), float(x.abs().max())
    if len(x) < 2 or spread > 1e-6 * size:
        return []
    return ["all images have the same features, so the accuracy is that of guessing one class"]


def chance(train: Tensor, scored: Tensor) -> float:
    """Return the accuracy in percent of always predicting the most frequent training class.

    Args:
        train: (N,) training labels.
        scored: (M,) labels of the scored images.
    """
    return 100 * float((scored == train.bincount().argmax()).double().mean())


def _of_sizes(holdout: Tensor, scored: Tensor, split: str) -> list[str]:
    warnings = []
    if 0 < len(holdout) < FEWEST_HELD_OUT:
        warnings.append(
            f"the hold-out has {_images(len(holdout))}: one is {100 / len(holdout):.1f} points in each choice"
        )
    if len(scored) < FEWEST_HELD_OUT:
        warnings.append(f"{split} has {_images(len(scored))}: one is {100 / len(scored):.1f} points")
    return warnings


def _of_classes(fitted: Tensor, scored: Tensor, classes: Sequence[str], split: str) -> list[str]:
    warnings, counts = [], fitted.bincount(minlength=len(classes))
    if scarce := ((counts > 0) & (counts < FEWEST_OF_CLASS)).nonzero().flatten().tolist():
        warnings.append(f"fewer than {FEWEST_OF_CLASS} training images of {_named(scarce, classes)}")
    there = scored.bincount(minlength=len(counts))
    absent = (there > 0) & (torch.nn.functional.pad(counts, (0, len(there) - len(counts))) == 0)
    if names := absent.nonzero().flatten().tolist():
        wrong = _images(int(there[absent].sum()))
        warnings.append(f"train has no image of {_named(names, classes)}: {wrong} of {split} cannot be right")
    return warnings


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _named(labels: Sequence[int], classes: Sequence[str]) -> str:
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"class{'es' * (len(names) > 1)} {', '.join(names[:NAMED])}{more}"

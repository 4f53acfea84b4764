"""Plan the images that a probe is fitted and selected on: all of them, or a few of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

ALL = "all"
OUTLIERS = "outliers"  # split of images of another data set
ONE_FURTHER = "one further image of each class"  # what a choice with one label of each is made on
FOLDS = 5  # maximum number of folds of the cross-validation


@dataclass(frozen=True)
class Part:
    """Subset of a split.

    Attributes:
        split: `train`, `holdout` or `test`; others where a source has them.
        rows: (n,) positions of the images in the split, ascending; None for the whole split.
    """

    split: str
    rows: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Select the rows of the subset from a tensor of the split, (N, ...) to (n, ...)."""
        return x if self.rows is None else x[self.rows]


@dataclass(frozen=True)
class Plan:
    """Subsets for fitting and selection.

    Attributes:
        trials: (fitted on, scored on) of every trial of the selection; their accuracies are averaged over images.
        final: subsets that the selected setting is fitted on.
        chosen_on: description of the trials.
    """

    trials: Sequence[tuple[Part, Part]]
    final: Sequence[Part]
    chosen_on: str


def plan_all_labels() -> Plan:
    """Return the plan with all labels: select on the hold-out, fit on train and hold-out."""
    train, holdout = Part("train"), Part("holdout")
    return Plan([(train, holdout)], [train, holdout], "holdout")


def plan_few_labels(labels: Tensor, counts: Tensor, seed: int) -> Plan:
    """Return the plan with a few training images per class: select by stratified cross-validation, fit on all of them.

    The number of folds is that of the images of the smallest class, at most 5. One image of each class cannot be both
    fitted and scored on; the selection then scores on as many images again, the one further image of each class of
    CoOp's protocol (Sec. 4.1, arXiv 2109.01134).

    Args:
        labels: (N,) labels of train.
        counts: (C,) number of images of each class: 1 for each class that occurs, or >= 2 for each.
        seed: seed of the subset and the folds.
    """
    drawn = list(_shuffled(labels, len(counts), seed))
    chosen = [rows[:count] for rows, count in zip(drawn, counts.tolist(), strict=True)]
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds == 1:
        further = [rows[count : 2 * count] for rows, count in zip(drawn, counts.tolist(), strict=True)]
        fit, score = (Part("train", torch.cat(rows).sort().values) for rows in (chosen, further))
        return Plan([(fit, score)], [fit], ONE_FURTHER)
    fold = [torch.arange(len(rows)) % folds for rows in chosen]
    rows, place = torch.cat(chosen).sort()
    fold_of = torch.cat(fold)[place]
    trials = [(Part("train", rows[fold_of != k]), Part("train", rows[fold_of == k])) for k in range(folds)]
    return Plan(trials, [Part("train", rows)], f"cross-validation of {folds} folds")


def holdout_mask(labels: Tensor, seed: int = 0) -> Tensor:
    """Return the mask of a hold-out: a tenth of each class, the same images in every call.

    Args:
        labels: (N,) labels of train, >= 0.
        seed: seed of the random order.

    Returns:
        (N,) bool, true for held-out images.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for rows in _shuffled(labels, int(labels.max()) + 1, seed):
        held[rows[: round(len(rows) / 10)]] = True
    return held


def images_per_class(labels: str | int, train: Tensor, holdout: Tensor, classes: int) -> Tensor:
    """Return the number of labelled images of each class, (C,) int64.

    Args:
        labels: images per class, or a percentage of train and hold-out together, such as `1%`.
        train: (N,) labels of train, which all images are drawn from.
        holdout: (H,) labels of the hold-out.
        classes: number of classes C.

    Raises:
        ValueError: `labels` is neither, or a percentage that leaves a class fewer than 2, or leaves a class more images
            than train has; the message completes a sentence that begins with `labels=...`.
    """
    available = torch.bincount(train, minlength=classes)
    every = available + torch.bincount(holdout, minlength=classes)
    counts = _counts(labels, every)
    if labels != 1 and (counts[every > 0] < 2).any():
        poorest = int(torch.where(every > 0, counts, counts.max() + 1).argmin())
        raise ValueError(f"leaves class {poorest} {int(counts[poorest])} images; a choice needs 2 of each, give more")
    if labels == 1 and (available[every > 0] < 2).any():
        scarce = int(torch.where(every > 0, available, available.max() + 1).argmin())
        raise ValueError(f"needs 2 training images of each class, one to choose on; class {scarce} has fewer")
    if (counts > available).any():
        scarce = int((available - counts).argmin())
        raise ValueError(f"exceeds the {int(available[scarce])} training images of class {scarce}; give fewer or all")
    return counts


def check_num_labels(labels: str | int) -> None:
    """Check the form of a number of labels.

    Raises:
        ValueError: it is neither `all`, nor a number of images per class, nor a percentage.
    """
    if labels != ALL:
        _counts(labels, torch.zeros(1))


def describe_labels(labels: str | int) -> str:
    """Return the number of labels as in result lines: `all`, `1%`, `5 per class`."""
    return labels if isinstance(labels, str) else f"{labels} per class"


def _counts(labels: str | int, every: Tensor) -> Tensor:
    if isinstance(labels, int) and labels >= 1:
        return torch.where(every > 0, labels, 0)
    try:
        percent = float(str(labels).removesuffix("%")) if str(labels).endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise ValueError("is no number of labels; give all, images per class, 1 or more, or a percentage such as 1%")
    return (every.double() * percent / 100).round().long()


def _shuffled(labels: Tensor, classes: int, seed: int) -> Iterator[Tensor]:
    """Yield the positions of the images of each class in random order."""
    generator = Generator().manual_seed(seed)
    for label in range(classes):
        rows = (labels == label).nonzero().flatten()
        yield rows[torch.randperm(len(rows), generator=generator)]

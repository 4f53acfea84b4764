"""Subsets of images that a probe is fitted on and selects with: all, or a few of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

ALL = "all"
FOLDS = 5  # of cross-validation, at most


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        split: `train`, `holdout` or `test`.
        rows: (n,) their positions in it, ascending; all of it if None.
    """

    split: str
    rows: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Those rows of what there is for the split, (N, ...) -> (n, ...)."""
        return x if self.rows is None else x[self.rows]


@dataclass(frozen=True)
class Plan:
    """The parts that are fitted and selected on.

    Attributes:
        trials: (fitted on, scored on) of every trial that a choice rests on; their accuracies are averaged over images.
        final: what the chosen setting is fitted on at the end.
        chosen_on: what the trials are, in words.
    """

    trials: Sequence[tuple[Part, Part]]
    final: Sequence[Part]
    chosen_on: str


def whole() -> Plan:
    """All labels: chosen on the hold-out, fitted on train and hold-out."""
    train, holdout = Part("train"), Part("holdout")
    return Plan([(train, holdout)], [train, holdout], "holdout")


def few(labels: Tensor, counts: Tensor, seed: int) -> Plan:
    """A few images of each class of train, and nothing but their labels: choices by cross-validation among them.

    As many folds as the smallest class has images, five at most; every class in proportion in each.

    Args:
        labels: (N,) of train.
        counts: (C,) images of each class, at least 2.
        seed: of the draw and the folds.
    """
    folds = min(FOLDS, int(counts[counts > 0].min()))
    drawn = _shuffled(labels, len(counts), seed)
    chosen = [rows[:count] for rows, count in zip(drawn, counts.tolist(), strict=True)]
    fold = [torch.arange(len(rows)) % folds for rows in chosen]
    rows, place = torch.cat(chosen).sort()
    fold_of = torch.cat(fold)[place]
    trials = [(Part("train", rows[fold_of != k]), Part("train", rows[fold_of == k])) for k in range(folds)]
    return Plan(trials, [Part("train", rows)], f"cross-validation of {folds} folds")


def tenth(labels: Tensor, seed: int = 0) -> Tensor:
    """Return the images (N,) of a hold-out where there is none: a tenth of each class, the same in every call.

    Returns:
        (N,) bool.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for rows in _shuffled(labels, int(labels.max()) + 1, seed):
        held[rows[: round(len(rows) / 10)]] = True
    return held


def counts_of(requested: str | int, train: Tensor, holdout: Tensor, classes: int) -> Tensor:
    """Return the number of labelled images of each class, (C,), for `requested` labels.

    Args:
        asked: images per class, or a share such as `1%` of train and hold-out together.
        train, holdout: their labels; all images are drawn from train.

    Raises:
        ValueError: it is neither, or leaves a class fewer than two or more than there are; a clause that
            finishes the sentence `labels=... `.
    """
    there = torch.bincount(train, minlength=classes)
    every = there + torch.bincount(holdout, minlength=classes)
    counts = _counted(requested, every)
    if (counts[every > 0] < 2).any():
        poorest = int(torch.where(every > 0, counts, counts.max() + 1).argmin())
        raise ValueError(f"leaves class {poorest} {int(counts[poorest])} images; a choice needs 2 of each, give more")
    if (counts > there).any():
        scarce = int((there - counts).argmin())
        raise ValueError(f"exceeds the {int(there[scarce])} training images of class {scarce}; give fewer or all")
    return counts


def check_form(requested: str | int) -> None:
    """Check that `requested` can be a number of labels.

    Raises:
        ValueError: it is neither `all`, nor images per class, nor a share.
    """
    if requested != ALL:
        _counted(requested, torch.zeros(1))


def describe_labels(requested: str | int) -> str:
    """`asked` as result lines say it: all, 1%, 5 per class."""
    return requested if isinstance(requested, str) else f"{requested} per class"


def _counted(requested: str | int, every: Tensor) -> Tensor:
    if isinstance(requested, int) and requested > 1:
        return torch.where(every > 0, requested, 0)
    try:
        share = float(str(requested).removesuffix("%")) if str(requested).endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 < share <= 100:
        raise ValueError("is no number of labels; give all, images per class, 2 or more, or a share such as 1%")
    return (every.double() * share / 100).round().long()


def _shuffled(labels: Tensor, classes: int, seed: int) -> Iterator[Tensor]:
    """Positions of each class in turn, in an order by seed."""
    generator = Generator().manual_seed(seed)
    for label in range(classes):
        rows = (labels == label).nonzero().flatten()
        yield rows[torch.randperm(len(rows), generator=generator)]

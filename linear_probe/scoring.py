"""Score features in NumPy arrays under named protocols."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from linear_probe.augmented_heads import AugmentedHeads
from linear_probe.checks import chance, check_features, check_labels
from linear_probe.features import Features
from linear_probe.protocols import joined
from linear_probe.registry import PROTOCOLS
from linear_probe.results import markdown, title
from linear_probe.subsets import holdout_mask


@dataclass(frozen=True)
class ScoreTable:
    """Accuracies of one set of features, printed as a Markdown table.

    Attributes:
        rows: one dict for each protocol: `protocol` (its name), `accuracy` (percent on the test split),
            `holdout_accuracy` (percent, of the setting that was chosen there), `setting` (the hyper-parameters that
            were chosen), `dimensions` (D), `train_images`, `holdout_images`, `test_images` and `source` (the paper and
            every deviation from it).
        chance: accuracy in percent of always predicting the most frequent training class.
        warnings: sentences on what makes the accuracies doubtful.
    """

    rows: Sequence[Mapping[str, Any]]
    chance: float
    warnings: Sequence[str] = ()

    @property
    def accuracies(self) -> dict[str, float]:
        """Return {protocol: accuracy in percent on the test split}."""
        return {row["protocol"]: row["accuracy"] for row in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """Return rows, chance and warnings as plain Python values that json can write."""
        return {"rows": [dict(row) for row in self.rows], "chance": self.chance, "warnings": list(self.warnings)}

    def __str__(self) -> str:
        """Return the Markdown table, followed by the warnings."""
        head = ["protocol", "test accuracy, %", "hold-out accuracy, %", "setting chosen on the hold-out"]
        lines = [head, *(self._line(row) for row in self.rows), ["most frequent class", f"{self.chance:.2f}", "", ""]]
        return "\n\n".join([markdown(lines), *(f"Warning: {sentence}." for sentence in self.warnings)])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        """Return the table for a notebook."""
        return str(self)

    @staticmethod
    def _line(row: Mapping[str, Any]) -> list[str]:
        setting = ", ".join(f"{name} {json.dumps(value)}" for name, value in row["setting"].items())
        return [title(row["protocol"]), f"{row['accuracy']:.2f}", f"{row['holdout_accuracy']:.2f}", setting]


def score(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    holdout_x: ArrayLike | None = None,
    holdout_y: ArrayLike | None = None,
    protocols: Sequence[str] = ("lbfgs", "knn"),
    seed: int = 0,
) -> ScoreTable:
    """Score features under one or several protocols.

    Each protocol chooses its hyper-parameters on the hold-out, is fitted once on training and hold-out images
    together, and predicts the test labels once. The accuracies equal those of `ldae probe features=FILE`.

    Args:
        train_x: (N, D) features of the training images, real and finite; computed in float32.
        train_y: (N,) class labels: integers or strings.
        test_x, test_y: (M, D) and (M,) of the test images.
        holdout_x, holdout_y: (H, D) and (H,) of the images that hyper-parameters are chosen on. Without them, a tenth
            of each training class is held out, the same in every call.
        protocols: names of `linear_probe.PROTOCOLS`, without those that encode images (`*_augmented`, `ood_*`).
        seed: of initial weights and batch orders of the SGD heads; `lbfgs` and the kNN protocols do not depend on it.

    Returns:
        The accuracies in percent, one row for each protocol.

    Raises:
        ValueError: a protocol is unknown, or arrays have a wrong shape, are not finite, or allow no score (a single
            class, no image).

    Example:
        >>> from sklearn.datasets import load_digits
        >>> x, y = load_digits(return_X_y=True)
        >>> table = score(x[:1200], y[:1200], x[1200:], y[1200:], protocols=["lbfgs", "knn"])
        >>> sorted(table.accuracies)
        ['knn', 'lbfgs']
    """
    _check_protocols(protocols)
    splits, names = _splits(_arrays(train_x, train_y, test_x, test_y, holdout_x, holdout_y))
    train, holdout, test = (splits[split] for split in ("train", "holdout", "test"))
    sentences = [*check_labels(train.y, holdout.y, test.y, names), *check_features(test.x)]
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=2)
    rows = [_score_protocol(name, train, holdout, test, len(names), seed) for name in protocols]
    return ScoreTable(rows, chance(train.y, test.y), sentences)


def _arrays(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    holdout_x: ArrayLike | None,
    holdout_y: ArrayLike | None,
) -> dict[str, tuple[ArrayLike, ArrayLike]]:
    """Return {split: (features, labels)}.

    Raises:
        ValueError: only one of the two arrays of the hold-out is given.
    """
    if (holdout_x is None) != (holdout_y is None):
        raise ValueError(f"holdout_{'x' if holdout_x is None else 'y'} is missing; give both holdout_x and holdout_y")
    arrays = {"train": (train_x, train_y), "test": (test_x, test_y)}
    if holdout_x is not None and holdout_y is not None:
        arrays["holdout"] = (holdout_x, holdout_y)
    return arrays


def _score_protocol(
    name: str, train: Features, holdout: Features, test: Features, classes: int, seed: int
) -> dict[str, Any]:
    """Select the setting of a protocol on the hold-out, fit it on train and hold-out, and return its row."""
    protocol = PROTOCOLS[name]
    choice = protocol.select(train, holdout, classes, seed)
    return {
        "protocol": name,
        "accuracy": protocol.evaluate(choice.setting, joined(train, holdout), test, classes, seed).score,
        "holdout_accuracy": choice.accuracy,
        "setting": dict(choice.setting),
        "dimensions": train.x.shape[1],
        "train_images": len(train),
        "holdout_images": len(holdout),
        "test_images": len(test),
        "source": protocol.source,
    }


def _check_protocols(names: Sequence[str]) -> None:
    usable = [
        name
        for name, protocol in PROTOCOLS.items()
        if not isinstance(protocol, AugmentedHeads) and not protocol.needs_outliers
    ]
    if isinstance(names, str) or not names:
        raise ValueError(f"protocols={names!r} is no list of names; give some of {', '.join(usable)}")
    for name in names:
        if name not in usable:
            reason = "is none"
            if name in PROTOCOLS:
                lack = "images of another data set" if PROTOCOLS[name].needs_outliers else "augmented images"
                reason = f"encodes {lack}, which arrays of features do not have"
            raise ValueError(f"protocols: {name!r} {reason}; give some of {', '.join(usable)}")


def _splits(arrays: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> tuple[dict[str, Features], list[str]]:
    """Return features and class indices of train, hold-out and test, and the names of the classes."""
    pairs = {split: _checked(split, np.asarray(x), np.asarray(y)) for split, (x, y) in arrays.items()}
    if len({x.shape[1] for x, _ in pairs.values()}) > 1:
        shapes = ", ".join(f"{split}_x {tuple(x.shape)}" for split, (x, _) in pairs.items())
        raise ValueError(f"features have different dimensions: {shapes}; give all splits the same D")
    labels = [y for _, y in pairs.values()]
    names, indices = np.unique(np.concatenate(labels), return_inverse=True)
    parts = torch.from_numpy(indices.astype(np.int64)).split([len(y) for y in labels])
    splits = {split: Features(x, y) for (split, (x, _)), y in zip(pairs.items(), parts, strict=True)}
    if "holdout" not in splits:
        train = splits["train"]
        held = holdout_mask(train.y)
        if not held.any():
            raise ValueError(f"train has {len(train)} images, too few for a hold-out; give holdout_x and holdout_y")
        splits["train"] = Features(train.x[~held], train.y[~held])
        splits["holdout"] = Features(train.x[held], train.y[held])
    return splits, [str(name) for name in names]


def _checked(split: str, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, np.ndarray]:
    if x.ndim != 2 or y.shape != x.shape[:1] or 0 in x.shape:
        raise ValueError(f"{split}_x has shape {x.shape} and {split}_y {y.shape}; give (N, D) and (N,) with N, D > 0")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{split}_x has dtype {x.dtype}; give real numbers")
    if y.dtype.kind not in "iubUS":
        raise ValueError(f"{split}_y has dtype {y.dtype}; give integers or strings as class labels")
    features = torch.from_numpy(np.array(x, dtype=np.float32))
    if not features.isfinite().all():
        raise ValueError(f"{split}_x has numbers that are not finite in float32; leave those images out")
    return features, y

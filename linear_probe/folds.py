"""Merge the results of a cross-validation: each of K parts of the data is the test split once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from linear_probe.results import Result, pack_correct, pack_values
from linear_probe.statistics import interval


def merge_folds(results: Sequence[Result]) -> Result:
    """Return the result over the images of all folds, in their order; settings are those of the first fold."""
    first, weights = results[0], [result.images for result in results]
    per_image = np.concatenate([result.per_image() for result in results])
    is_binary, certain = bool(np.isin(per_image, (0, 1)).all()), interval(per_image)
    by_fold = [
        {"accuracy": r.accuracy, "selected_accuracy": r.selected_accuracy, "layer": r.layer, "t": r.t} for r in results
    ]

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    return replace(
        first,
        accuracy=mean([r.accuracy for r in results]),
        images=sum(weights),
        selected={**first.selected, "by_fold": by_fold},
        selected_on=f"{first.selected_on} of each of {len(results)} folds",
        selected_accuracy=mean([r.selected_accuracy for r in results]),
        data_fingerprint=hashlib.sha256(" ".join(r.data_fingerprint for r in results).encode()).hexdigest(),
        warnings=list(dict.fromkeys(warning for r in results for warning in r.warnings)),
        correct=pack_correct(per_image[None]) if is_binary else "",
        values="" if is_binary else pack_values(per_image),
        low=certain.low,
        high=certain.high,
        further={name: round(mean([r.further[name] for r in results]), 4) for name in first.further},
    )

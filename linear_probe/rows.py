"""Read and write rows of an ablation: a pretraining, its cost and its probe results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from linear_probe.protocols import mean_and_deviation
from linear_probe.results import Result, pack_correct, pack_values, sealed, unpack_correct, unsealed
from linear_probe.statistics import interval


@dataclass(frozen=True)
class Row:
    """Finished trial of a grid.

    Attributes:
        grid: name of the grid.
        trial: name of the trial, unique in the grid.
        axes: values of the varied quantities, e.g. {"tokenizer": "patch_pca", "d": 16}.
        results: probe results, one for each protocol.
        paper: accuracy in percent that the paper reports; None if it reports none.
        paper_source: table or figure of the paper, with its data and network.
        budget: name of the budget of pretraining.
        images: number of images seen in pretraining, repetitions included.
        hours: core-hours or GPU-hours of pretraining and of the tokenizer's training.
        unit: unit of the hours, `core` or `GPU`.
        command, commit: provenance of the pretraining.
        pictures: {subject: file relative to the file of rows}.
    """

    grid: str
    trial: str
    axes: Mapping[str, Any]
    results: Sequence[Result]
    paper: float | None
    paper_source: str
    budget: str
    images: int
    hours: float
    unit: str
    command: str
    commit: str
    pictures: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """Return the row as a line of JSON with its hash."""
        return sealed(asdict(self))


def read_rows(path: Path) -> list[Row]:
    """Read a file of rows.

    Raises:
        ValueError: a line is damaged.
    """
    return [_row(unsealed(line)) for line in path.read_text().splitlines()]


def _row(record: dict[str, Any]) -> Row:
    return Row(**{**record, "results": [Result(**result) for result in record["results"]]})


def merge_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each trial: over several seeds, the mean accuracies and their deviations.

    Command, commit and pictures are those of the first seed; hours are the mean.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.grid, row.trial), []).append(row)
    return [
        replace(
            repeated[0],
            results=merge_results([result for row in repeated for result in row.results]),
            hours=sum(row.hours for row in repeated) / len(repeated),
        )
        for repeated in groups.values()
    ]


def merge_results(results: Sequence[Result]) -> list[Result]:
    """Return one result for each encoder, protocol, split and labels: over several seeds, their mean and deviation.

    The settings are those of the first seed; `selected` has under `by_seed` what each seed had.
    """
    groups: dict[tuple[str, ...], dict[int, Result]] = {}
    for result in results:
        key = (result.encoder, result.protocol, result.split, result.labels, result.data, result.measure)
        groups.setdefault(key, {}).setdefault(result.seed, result)
    return [_mean(list(repeated.values())) for repeated in groups.values()]


def _mean(repeated: Sequence[Result]) -> Result:
    """Return the mean of the results of several seeds; a single one unchanged.

    Which images were correct, and the interval over the images, are those of all seeds together where each result has
    the former for the same images.
    """
    first, *others = repeated
    if not others:
        return first
    accuracy, deviation = mean_and_deviation([result.accuracy for result in repeated])
    by_seed = [
        {
            "seed": result.seed,
            "accuracy": result.accuracy,
            "selected_accuracy": result.selected_accuracy,
            "layer": result.layer,
            "t": result.t,
            "checkpoint": result.checkpoint,
        }
        for result in repeated
    ]
    merged = replace(
        first,
        accuracy=accuracy,
        deviation=deviation,
        selected_accuracy=mean_and_deviation([result.selected_accuracy for result in repeated])[0],
        seeds=[result.seed for result in repeated],
        selected={**first.selected, "by_seed": by_seed},
        further=_means([result.further for result in repeated]),
        geometry=_means([result.geometry for result in repeated]),
        correct="",
        values="",
        low=None,
        high=None,
    )
    if len({(result.images, result.data_fingerprint) for result in repeated}) > 1:
        return merged
    if not all(result.has_images for result in repeated):
        return merged
    per_image = np.mean([result.per_image() for result in repeated], axis=0)
    over_images = interval(per_image)
    correct, values = "", pack_values(per_image)
    if all(result.correct and not result.seeds for result in repeated):
        correct, values = pack_correct(np.concatenate([unpack_correct(r.correct, 1, r.images) for r in repeated])), ""
    return replace(merged, correct=correct, values=values, low=over_images.low, high=over_images.high)


def _means(measures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each measure that all have."""
    names = [name for name in measures[0] if all(name in of for of in measures)]
    return {name: mean_and_deviation([of[name] for of in measures])[0] for name in names}

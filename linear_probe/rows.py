"""Read and write rows of an ablation: a pretraining, its cost and its probe results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from linear_probe.protocols import mean_and_deviation
from linear_probe.results import Result, pack_values, sealed, unsealed
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
    """Return the mean of the results of several seeds; a single one unchanged."""
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
    return replace(
        first,
        accuracy=accuracy,
        deviation=deviation,
        selected_accuracy=mean_and_deviation([result.selected_accuracy for result in repeated])[0],
        seeds=[result.seed for result in repeated],
        **_of_images(repeated),
        selected={**first.selected, "by_seed": by_seed},
    )


def _of_images(repeated: Sequence[Result]) -> dict[str, Any]:
    """Return the values of the images, their interval and the further measures of a mean over seeds."""
    names = [name for name in repeated[0].further if all(name in result.further for result in repeated)]
    further = {name: mean_and_deviation([result.further[name] for result in repeated])[0] for name in names}
    if not all(result.has_images and result.images == repeated[0].images for result in repeated):
        return {"correct": "", "values": "", "low": None, "high": None, "further": further}
    per_image = np.mean([result.per_image() for result in repeated], axis=0)
    certain = interval(per_image)
    values = pack_values(per_image)
    return {"correct": "", "values": values, "low": certain.low, "high": certain.high, "further": further}

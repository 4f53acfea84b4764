"""Read and write rows of an ablation: a pretraining, its cost and its probe results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linear_probe.results import Result, sealed, unsealed


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

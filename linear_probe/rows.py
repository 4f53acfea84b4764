"""A line of an ablation table: one pretraining, what it cost, and what probes found in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linear_probe.results import Result, sealed, unsealed


@dataclass(frozen=True)
class Row:
    """One cell of a grid.

    Attributes:
        grid: which ablation it belongs to.
        trial: its name, the only one of that name in the grid.
        axes: what the grid varies, and this cell's values: {"tokenizer": "patch_pca", "d": 16}.
        results: what probes found, a protocol each.
        paper: accuracy that the paper printed for it, percent; None where it printed none.
        paper_source: where, and with what data and size.
        budget: name of the length of pretraining.
        images: seen in pretraining, repetitions counted.
        hours: of pretraining and of its tokenizer's training, times cores or GPUs.
        unit: what the hours are of, `core` or `GPU`.
        command, commit: of pretraining.
        pictures: what each shows -> its file, relative to the file of rows.
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
        """One line of JSON."""
        return sealed(asdict(self))


def read_rows(path: Path) -> list[Row]:
    """The rows in `path`, one a line.

    Raises:
        ValueError: a line is damaged.
    """
    return [_row(unsealed(line)) for line in path.read_text().splitlines()]


def _row(found: dict[str, Any]) -> Row:
    return Row(**{**found, "results": [Result(**result) for result in found["results"]]})

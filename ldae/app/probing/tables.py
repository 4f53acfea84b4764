"""Print tables of probe results, and compare them with other runs on the same data."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldae.core.errors import ConfigError, DataError
from linear_probe.checks import NothingToScoreError, check_labels
from linear_probe.results import Result, further_table, grid, place_of_choice, read_results, table, title


def warn_of_labels(
    source: str, train: Tensor, holdout: Tensor, scored: Tensor, classes: Sequence[str], split: str = "test"
) -> list[str]:
    """Print warnings about labels on stderr, and return them.

    Args:
        source: key and value of the data, e.g. `data.root=FOLDER`.
        train, holdout, scored, classes, split: as for `check_labels`.

    Raises:
        DataError: there is nothing to score.
    """
    try:
        warnings = check_labels(train, holdout, scored, classes, split)
    except NothingToScoreError as error:
        raise DataError(f"{source} {error}") from None
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return warnings


def data_source(data: Mapping[str, Any]) -> str:
    """Return the key and value that name the images of a config's group `data`, for a sentence about them."""
    return f"data.root={data['root']}" if data.get("root") else f"data={data['part'].rsplit('.', 1)[-1]}"


def read_comparisons(
    files: Sequence[str], protocols: Collection[str], split: str, fingerprint: str, labels: str
) -> Iterator[Result]:
    """Yield the results of other runs in the same protocols.

    Args:
        files: results.jsonl files of `ldae probe`.
        protocols: names of the protocols.
        split: split of the accuracies.
        fingerprint: fingerprint of the data set.
        labels: number of labels used.

    Raises:
        ConfigError: a file cannot be read, or is of other images.
    """
    for name in files:
        try:
            results = read_results(Path(name).expanduser())
        except (OSError, ValueError, TypeError) as error:
            message = f"holds no results ({error}); give a results.jsonl of ldae probe"
            raise ConfigError("compare_to", name, message) from None
        if any((r.data_fingerprint, r.split) != (fingerprint, split) for r in results):
            raise ConfigError("compare_to", name, f"is of other images than the {split} split of this run's data")
        matching = (r for r in results if r.checkpoint != "none" and r.protocol in protocols and r.labels == labels)
        yield from (replace(r, encoder=f"{r.encoder} ({r.checkpoint[:8]})") for r in matching)  # names may be equal


def tables(results: Sequence[Result], others: Sequence[Result], chance: float | None = None) -> str:
    """Return a table of all results, baselines and chance last, then a table of layers by noise levels per protocol.

    Warnings follow the first table.
    """
    trained, baselines = ([r for r in results if (r.checkpoint == "none") is baseline] for baseline in (False, True))
    networks = [*trained, *others]
    parts = [table([*networks, *baselines], chance)]
    further = further_table([*networks, *baselines])
    parts += [f"Other measures of the same images, percent:\n\n{further}"] if further else []
    notes = dict.fromkeys(note for r in results for note in r.warnings)
    parts += ["\n".join(f"Warning: {note}." for note in notes)] if notes else []
    for protocol in dict.fromkeys(r.protocol for r in trained if not r.outliers):  # those are selected by accuracy
        of_one = [r for r in networks if r.protocol == protocol]
        if any(len(r.selected["among"]) > 1 for r in of_one):
            parts.append(
                f"{title(protocol)} on the {place_of_choice(of_one[0])}, the split of the selection:\n\n{grid(of_one)}"
            )
    return "\n\n".join(parts)

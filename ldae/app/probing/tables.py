"""Tables of probes: of one run, and of others of the same data beside it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldae.core.errors import ConfigError, DataError
from linear_probe.checks import NothingToScoreError, check_labels
from linear_probe.results import Result, grid, place_of_choice, read_results, table, title


def warned(
    place: str, train: Tensor, holdout: Tensor, scored: Tensor, classes: Sequence[str], split: str = "test"
) -> list[str]:
    """Print on stderr what makes accuracies doubtful, and return it.

    Args:
        place: key and value that name the data.
        train, holdout, scored, classes, split: as for `check_labels`.

    Raises:
        DataError: there is nothing to score.
    """
    try:
        found = check_labels(train, holdout, scored, classes, split)
    except NothingToScoreError as error:
        raise DataError(f"{place} {error}") from None
    for sentence in found:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    return found


def place_of(data: Mapping[str, Any]) -> str:
    """Return the key and value that name the images of a config's group `data`, for a sentence about them."""
    return f"data.root={data['root']}" if data.get("root") else f"data={data['part'].rsplit('.', 1)[-1]}"


def others_of(
    files: Sequence[str], protocols: Collection[str], split: str, fingerprint: str, labels: str
) -> Iterator[Result]:
    """What other runs' networks had in the same protocols.

    Args:
        files: that probe.py wrote.
        protocols, split: which are wanted, and on what.
        fingerprint: of the data set.
        labels: how many labels were used.

    Raises:
        ConfigError: a file cannot be read, or is of other images.
    """
    for name in files:
        try:
            found = read_results(Path(name).expanduser())
        except (OSError, ValueError, TypeError) as error:
            message = f"holds no results ({error}); give a results.jsonl that probe.py wrote"
            raise ConfigError("compare_to", name, message) from None
        if any((r.data_fingerprint, r.split) != (fingerprint, split) for r in found):
            raise ConfigError("compare_to", name, f"is of other images than the {split} split of this run's data")
        requested = (r for r in found if r.checkpoint != "none" and r.protocol in protocols and r.labels == labels)
        yield from (
            replace(r, encoder=f"{r.encoder} ({r.checkpoint[:8]})") for r in requested
        )  # names alone may be alike


def tables(results: Sequence[Result], others: Sequence[Result], chance: float | None = None) -> str:
    """Return one table of all, baselines and chance last; where there was a choice, for each protocol layers by levels.

    Warnings of the results stand below the first table.
    """
    trained, baselines = ([r for r in results if (r.checkpoint == "none") is baseline] for baseline in (False, True))
    networks = [*trained, *others]
    parts = [table([*networks, *baselines], chance)]
    notes = dict.fromkeys(note for r in results for note in r.warnings)
    parts += ["\n".join(f"Warning: {note}." for note in notes)] if notes else []
    for protocol in dict.fromkeys(r.protocol for r in trained):
        of_one = [r for r in networks if r.protocol == protocol]
        if any(len(r.selected["among"]) > 1 for r in of_one):
            parts.append(
                f"{title(protocol)} on the {place_of_choice(of_one[0])}, where the choice was made:\n\n{grid(of_one)}"
            )
    return "\n\n".join(parts)

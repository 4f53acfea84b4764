"""Tables of probes: of one run, and of others of the same data beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ldae.errors import ConfigError
from linear_probe.results import Result, grid, place_of_choice, read_results, table


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
            told = f"holds no results ({error}); give a results.jsonl that probe.py wrote"
            raise ConfigError("beside", name, told) from None
        if any((r.data_fingerprint, r.split) != (fingerprint, split) for r in found):
            raise ConfigError("beside", name, f"is of other images than the {split} split of this run's data")
        wanted = (r for r in found if r.checkpoint != "none" and r.protocol in protocols and r.labels == labels)
        yield from (replace(r, encoder=f"{r.encoder} ({r.checkpoint[:8]})") for r in wanted)  # names alone may be alike


def tables(results: Sequence[Result], others: Sequence[Result]) -> str:
    """One table of all, the floors last; and where there was a choice, for each protocol layers by levels."""
    trained, floors = ([r for r in results if (r.checkpoint == "none") is floor] for floor in (False, True))
    networks = [*trained, *others]
    parts = [table([*networks, *floors])]
    for protocol in dict.fromkeys(r.protocol for r in trained):
        of_one = [r for r in networks if r.protocol == protocol]
        if any(len(r.selected["among"]) > 1 for r in of_one):
            parts.append(
                f"{protocol} on the {place_of_choice(of_one[0])}, where the choice was made:\n\n{grid(of_one)}"
            )
    return "\n\n".join(parts)

"""List the runs below a folder: what differs between them, progress, last metrics and best probes.

    ldae runs                                                  # below runs/
    ldae runs FOLDER sort=-linear where='linear>50,state=done'
    ldae runs RUN OTHER_RUN compare=true                       # side by side, only what differs
    ldae runs FOLDER out=PAGE                                  # also as a page with the curves

Prints a line for each run: progress, the best accuracy of each protocol of its probes, the last losses and online
figures, experiment, and the config keys that differ. A column is named as its heading, a config key by its dotted name;
a minus sorts downwards. Reads config.json, status.json, metrics.jsonl and the probes' results, in training too, and
changes no run. A folder that is damaged is named and left out. With `out=`, writes OUT/index.html, one file that needs
no network, OUT/runs.csv, and the curves as SVG, PDF, PNG and CSV in OUT/figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldae.app.compose import compose, resolved
from ldae.app.overrides import argument
from ldae.app.runs.records import read_runs
from ldae.app.runs.table import build_table, select
from ldae.app.session import make_out, root_settings
from ldae.core.errors import ConfigError, DataError
from ldae.core.types import PossiblyEmpty


@dataclass(frozen=True)
class RunsSettings:
    """Configure a list of runs.

    Attributes:
        folder: folder to search, or a list.
        where: conditions that a run must fulfil, separated by commas.
        sort: column or config key to sort by; descending after a minus.
        keys: config keys to show; those that differ between the runs if empty.
        compare: show a column for each run instead of a line.
        out: folder of the page; no page if None.
    """

    folder: str | list[str]
    where: str | None
    sort: str | None
    keys: PossiblyEmpty[str]
    compare: bool
    out: str | None


def main(argv: Sequence[str]) -> None:
    """Print the table of the runs, and write the page where `out=` names a folder.

    Raises:
        ConfigError: a folder does not exist, or a key is invalid.
        DataError: there is no run, or none that fulfils the conditions.
    """
    settings: RunsSettings = root_settings(RunsSettings, resolved(compose("runs", with_folders(argv))))
    names = [settings.folder] if isinstance(settings.folder, str) else settings.folder
    folders = [Path(name).expanduser() for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError("folder", str(folder), "is no folder; name one with runs, e.g. ldae runs FOLDER")
    records, skipped = read_runs(folders)
    notes = [*skipped, *(note for record in records for note in record.damaged)]
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr, flush=True)
    if not records:
        raise DataError(f"no run at or below {', '.join(map(str, folders))}; ldae pretrain makes one")
    chosen = select(records, settings.where, settings.sort)
    if not chosen:
        raise DataError(f"none of the {len(records)} runs fulfils where={settings.where}")
    table = build_table(chosen, settings.keys)
    print(table.compared() if settings.compare else table.text())
    if settings.out is not None:
        from ldae.app.runs.page import write_page

        out = Path(settings.out).expanduser()
        make_out(out)
        write_page(table, out, f"Runs in {', '.join(names)}")
        print(f"\npage: {out / 'index.html'}")


def with_folders(argv: Sequence[str]) -> list[str]:
    """Return the arguments with folders that stand without a key under the key `folder`."""
    folders = [word for word in argv if "=" not in word and not word.startswith("-")]
    others = [word for word in argv if word not in folders]
    if not folders:
        return others
    if any(word.startswith("folder=") for word in others):
        raise ConfigError("folder", folders[0], "is named beside folder=; give either")
    listed = ",".join(argument("folder", name).partition("=")[2] for name in folders)
    return [*others, f"folder=[{listed}]"]

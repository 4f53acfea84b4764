"""Manage the folder of an ablation: the records of its trials, and the tables that collect them."""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from ldae.app.ablation.trials import PlannedTrial, lasting
from ldae.core.errors import CheckpointError, OutputError, UsageError
from ldae.core.files import CONTENT_HASH, content_hash, read_sealed_json, write_text
from ldae.engine.run_folder import differences
from linear_probe.results import Result, unsealed
from linear_probe.rows import Row, read_rows

ROWS, OTHERS = "rows.jsonl", "others.jsonl"


class AblationDir:
    """Folder of an ablation: rows.jsonl, others.jsonl, pictures/ and, for internal use, trials/, runs/ and logs/.

    Several processes may use it at a time.

    Args:
        out: the folder; made when it is opened.
    """

    def __init__(self, out: Path):
        self.out = out

    def open(self) -> None:
        """Make the folder, without a lock: the jobs of a cluster start at the same time.

        Raises:
            OutputError: it cannot be made or written.
        """
        probe = self.out / "trials" / f".writable-{uuid.uuid4().hex[:8]}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise OutputError(f"out={self.out} cannot be written ({error.strerror}); give another out=") from None

    def run(self, planned: PlannedTrial) -> Path:
        """Return the folder of a trial's pretraining; trials with the same config share it."""
        existing = sorted((self.out / "runs").glob(f"*-{planned.run_key}"))
        return existing[0] if existing else self.out / "runs" / planned.run

    def pictures(self, planned: PlannedTrial) -> Path:
        """Return the folder of a trial's pictures."""
        return self.out / "pictures" / self.run(planned).name

    def log(self, planned: PlannedTrial) -> Path:
        """Return the file that collects the output of a trial's processes."""
        return self.out / "logs" / planned.trial.grid / f"{planned.trial.label}.log"

    def record(self, planned: PlannedTrial) -> Path:
        """Return the file with a finished trial's row, baselines and config."""
        return self.out / "trials" / planned.trial.grid / f"{planned.trial.label}.json"

    def keep(self, planned: PlannedTrial, row: Row, baselines: Sequence[Result]) -> None:
        """Write the record of a finished trial, and collect all records again."""
        path = self.record(planned)
        path.parent.mkdir(parents=True, exist_ok=True)
        trial, results = planned.trial, [asdict(r) for r in baselines]
        record = {
            "key": planned.key,
            "config": dict(lasting(planned.config)),
            "probe": list(planned.probe),
            "is_baseline": trial.is_baseline,
            "position": trial.position,
            "row": asdict(row),
            "baselines": results,
        }
        whole = json.loads(json.dumps(record))  # as JSON reads it
        sealed = {**whole, CONTENT_HASH: content_hash(whole)}
        write_text(path, json.dumps(sealed, indent=1) + "\n")  # unsorted: axes keep their order
        self.collect()

    def finished_row(self, planned: PlannedTrial) -> Row | None:
        """Return the row of a trial, or None if it is not finished.

        Raises:
            UsageError: the folder holds a trial of that name with other settings.
            CheckpointError: its record is damaged.
        """
        path = self.record(planned)
        if not path.exists():
            return None
        record = read_sealed_json(path)
        if record.get("key") == planned.key:
            return row_of(record, path)
        now = {"config": dict(lasting(planned.config)), "probe": list(planned.probe)}
        changes = [
            f"{key.removeprefix('config.')} was {old!r}, is {new!r}"
            for key, old, new in differences({k: record.get(k) for k in now}, now, ())
        ]
        raise UsageError(
            f"{self.out} holds the trial {planned.trial.label} with other settings: {'; '.join(changes[:5])}. "
            f"Give another out=, or delete {path} to run it again"
        )

    def collect(self) -> tuple[list[Row], list[Result]]:
        """Write rows.jsonl and others.jsonl from all records; the same records give the same files."""
        with FileLock(self.out / "trials" / ".collect"):
            paths = sorted((self.out / "trials").glob("*/*.json"))
            pairs = [(record, row_of(record, path)) for path in paths for record in [read_sealed_json(path)]]
            pairs.sort(key=lambda pair: (pair[1].grid, pair[0]["is_baseline"], pair[0]["position"]))
            rows = [row for record, row in pairs if not record["is_baseline"]]
            others = [r for record, row in pairs if record["is_baseline"] for r in row.results]
            others += [Result(**result) for record, _ in pairs for result in record["baselines"]]
            write_text(self.out / ROWS, "".join(row.line() + "\n" for row in rows))
            write_text(self.out / OTHERS, "".join(r.line() + "\n" for r in others))
        return rows, others


def row_of(record: dict[str, Any], path: Path) -> Row:
    """Return the row of a record.

    Raises:
        CheckpointError: there is none.
    """
    try:
        row = dict(record["row"])
        return Row(**{**row, "results": [Result(**result) for result in row["results"]]})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no row ({error}); delete it to run the trial again") from None


def rows_in(out: Path) -> tuple[list[Row], list[Result]]:
    """Read the rows of an ablation, and the results of their baselines.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    path = out / ROWS
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give the out= of an ablation")
    try:
        others = (out / OTHERS).read_text().splitlines() if (out / OTHERS).exists() else []
        rows = read_rows(path)
        if not rows:
            raise CheckpointError(f"{path} has no row yet; finish a trial first")
        return rows, [Result(**unsealed(line)) for line in others]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"a line has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} holds no rows of an ablation ({reason}); give the out= of one") from None

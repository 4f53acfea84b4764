"""Write the files of a report."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from linear_probe.report.contents import build_contents
from linear_probe.report.page import build_page
from linear_probe.report.tables import results_jsonl, table_md, table_tex
from linear_probe.results import Result
from linear_probe.rows import Row

NO_SCHEDULES: Mapping[str, Sequence[float]] = MappingProxyType({})


def write_report(
    rows: Sequence[Row],
    others: Sequence[Result],
    root: Path,
    out: Path,
    title: str,
    schedules: Mapping[str, Sequence[float]] = NO_SCHEDULES,
) -> None:
    """Write table.md, table.tex, results.jsonl, index.html and the figures as SVG, PDF and PNG in figures/.

    Nothing is written before everything is made; each file replaces its predecessor in one step, the page last. Other
    files of the folder stay, figures of an earlier report too.

    Args:
        rows: trials of one grid or of several.
        others: results of baselines to compare with.
        root: folder that the rows' pictures are relative to.
        out: folder, made if it is not there.
        title: of the page.
        schedules: noise schedules to draw: name -> signal fraction gamma^2 / (gamma^2 + sigma^2) at t = 0..T-1.

    Raises:
        Unreportable: the results cannot stand in one table (other protocols of one name, splits, data sets or
            fractions of labels), or there are none.
    """
    contents = build_contents(title, rows, others, schedules)
    page, figures = build_page(contents, root)
    texts = {"table.md": table_md(contents), "table.tex": table_tex(contents), "results.jsonl": results_jsonl(contents)}
    files = figures | {name: text.encode() for name, text in (texts | {"index.html": page}).items()}
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _replace(out / name, content)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""The files of a report."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from linear_probe.report.contents import gathered
from linear_probe.report.page import page
from linear_probe.report.plain import results_jsonl, table_md, table_tex
from linear_probe.results import Result
from linear_probe.rows import Row

NO_CURVES: Mapping[str, Sequence[float]] = MappingProxyType({})


def write_report(
    rows: Sequence[Row],
    others: Sequence[Result],
    root: Path,
    out: Path,
    title: str,
    curves: Mapping[str, Sequence[float]] = NO_CURVES,
) -> None:
    """Writes table.md, table.tex, results.jsonl and index.html into `out`, each in one step, when all can be made.

    Args:
        rows: cells of one grid or of several.
        others: floors and baselines to stand beside them.
        root: folder that the rows' pictures are relative to.
        out: folder, made if it is not there.
        title: of the page.
        curves: noise schedules to draw: name -> share of signal gamma^2 / (gamma^2 + sigma^2) at t = 0..T-1.

    Raises:
        Unreportable: the results cannot stand in one table (other protocols of one name, splits, data sets or
            fractions of labels), or there are none.
    """
    contents = gathered(title, rows, others, curves)
    texts = {
        "table.md": table_md(contents),
        "table.tex": table_tex(contents),
        "results.jsonl": results_jsonl(contents),
        "index.html": page(contents, root),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _replace(out / name, text)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

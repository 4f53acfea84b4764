"""Write the files of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from linear_probe.report.contents import build_contents
from linear_probe.report.document import write_files
from linear_probe.report.page import build_page
from linear_probe.report.tables import results_jsonl, table_csv, table_md, table_tex
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
    """Write table.md, .tex and .csv, results.jsonl, index.html and the figures as SVG, PDF, PNG and CSV in figures/.

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
    texts = {
        "table.md": table_md(contents),
        "table.tex": table_tex(contents),
        "table.csv": table_csv(contents),
        "results.jsonl": results_jsonl(contents),
    }
    files: dict[str, str | bytes] = {**figures, **texts, "index.html": page}
    write_files(out, files)

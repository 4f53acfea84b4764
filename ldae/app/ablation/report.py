"""Write the report of an ablation again: tables in Markdown and LaTeX, figures, and a page with all of them.

    ldae report out=OUT [title="A TITLE"]

OUT is the folder of `ldae ablate`; `title=` is the page's heading. Writes OUT/index.html, the table as OUT/table.md,
table.csv and, for a paper, table.tex, OUT/results.jsonl, and every figure as SVG, PDF, PNG and CSV in OUT/figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldae.app.ablation.ablation_dir import rows_in
from ldae.app.compose import compose, resolved
from ldae.config.build import Parts
from ldae.core.errors import DataError, UsageError
from linear_probe.agreement import agreements
from linear_probe.results import title
from linear_probe.rows import merge_results, merge_seeds

SCHEDULES = ("ddpm_linear", "linear_gamma2", "linear_sigma", "constant_sigma")  # of the deconstruction path


def main(argv: Sequence[str]) -> None:
    """Write the report of the folder that `out=` names, with the title that `title=` gives.

    Raises:
        UsageError: there is another argument.
        DataError: the rows do not fit into one report.
    """
    values = dict(word.partition("=")[::2] for word in argv)
    if not values.get("out") or set(values) - {"out", "title"}:
        raise UsageError('usage: ldae report out=OUT [title="A TITLE"], OUT being the folder of an ablation')
    write(Path(values["out"]).expanduser(), values.get("title", ""))


def write(out: Path, heading: str = "") -> None:
    """Write the report of a folder, and print the rank correlation of its rows with the paper.

    Args:
        out: the folder.
        heading: title of the page; one that names data and grids if empty.

    Raises:
        DataError: the rows do not fit into one report.
    """
    rows, others = rows_in(out)
    rows, others = merge_seeds(rows), merge_results(others)
    for (grid, protocol), agreement in agreements(rows).items():
        measured = f"Spearman's rank correlation with the paper's accuracies: {agreement}"
        print(f"{grid}, {title(protocol)}: {measured} ({agreement.count} trials)")
    from linear_probe.report.contents import Unreportable
    from linear_probe.report.write import write_report

    grids = ", ".join(dict.fromkeys(row.grid for row in rows))
    data = ", ".join(dict.fromkeys(result.data for row in rows for result in row.results))
    try:
        write_report(rows, others, out, out, heading or f"Ablations on {data}: {grids}", curves())
    except Unreportable as error:
        raise DataError(f"out={out}: {error}") from None
    files = {file for row in rows for file in row.pictures.values()}
    if missing := sum(not (out / file).is_file() for file in files):
        print(f"{missing} of {len(files)} pictures are missing; the report has a note for each trial", flush=True)
    print(f"report: {out / 'index.html'}", flush=True)


def curves() -> dict[str, list[float]]:
    """Return {noise schedule: gamma^2 / (gamma^2 + sigma^2) at every step} of the deconstruction path."""
    signal_fraction = {}
    for name in SCHEDULES:
        schedule = Parts(resolved(compose("pretrain", [f"schedule={name}"]))).schedule
        level = schedule.at(torch.arange(schedule.T))
        signal, noise = level.gamma.double() ** 2, level.sigma.double() ** 2
        signal_fraction[name] = (signal / (signal + noise)).tolist()
    return signal_fraction

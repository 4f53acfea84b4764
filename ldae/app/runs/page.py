"""Write the page of a list of runs: a table, the curves of all runs, and what differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldae.app.runs.records import MODEL, RunRecord, metric_title, number
from ldae.app.runs.table import MOST_KEYS, RunTable, value_text
from linear_probe.report.document import (
    BEST,
    PageSection,
    PageTable,
    TableCell,
    TableLine,
    render_document,
    write_files,
)
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.rendering import FigureFiles, SavedFigure, csv_text
from linear_probe.results import describe_features, percent, title

MOST_POINTS = 150  # of a curve; longer ones are means over equal parts
MOST_COMPARED = 8  # runs side by side
BASELINES = ("chance", "untrained")  # beside the figure of the network in training
LOG_RATIO = 8.0  # a loss that falls by such a factor is drawn on a logarithmic axis
Curve = Sequence[tuple[int, float]]  # (step, value)


def write_page(table: RunTable, out: Path, heading: str) -> None:
    """Write index.html, runs.csv and the curves in figures/.

    Args:
        table: the runs.
        out: folder of the page.
        heading: title of the page.
    """
    files = FigureFiles()
    sections = [PageSection("Runs", tables=[_runs(table)])]
    sections += [PageSection(name, figures=figures) for name, figures in _figures(table.records, files) if figures]
    rows = table.differing()
    if 1 < len(table.records) <= MOST_COMPARED and rows:
        lines = [TableLine(name, [TableCell(text) for text in texts]) for name, *texts in rows]
        heads = [record.name for record in table.records]
        sections.append(
            PageSection("What differs", tables=[PageTable("setting or figure", heads, lines, is_text=True)])
        )
    states = [record.state for record in table.records]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    note = "A heading sorts; a name opens folder and settings; a checkbox shows and hides the curves of a run."
    page = render_document(heading, f"{len(states)} runs: {counts}.", note, sections)
    write_files(out, {**files.contents, "runs.csv": csv_text(_csv(table)), "index.html": page})


def _runs(table: RunTable) -> PageTable:
    best, hidden = table.best(), table.keys[MOST_KEYS:]
    lines, heads = [], list[str]()
    for i, record in enumerate(table.records):
        cells = {name: cell for name, cell in table.cells(record).items() if name not in hidden}
        heads = list(cells)
        marked = [
            TableCell(text, number(value), BEST if value is not None and best.get(name) == value else "")
            for name, (text, value) in cells.items()
        ]
        lines.append(TableLine(record.name, marked, list(_details(record, hidden)), i))
    caption = "Last losses and online figures; accuracies of probes in percent, the best of a column bold."
    return PageTable("run", heads, lines, caption)


def _details(record: RunRecord, keys: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    yield "folder", str(record.path), True
    if record.message:
        yield record.state, record.message, False
    for key in keys:
        yield key, value_text(record.config.get(key)) or "not set", False
    for r in record.results:
        yield title(r.protocol), f"{percent(r)} on {r.data}, {r.split} split; {describe_features(r)}", False


def _csv(table: RunTable) -> Iterator[list[str | float | None]]:
    """Yield a header and a row for each run, with every key and number."""
    for i, record in enumerate(table.records):
        about: dict[str, str | float | None] = {"run": record.name, "state": record.state}
        about |= {"step": record.step, "epoch": record.epoch}
        cells = {name: value for name, (_, value) in table.cells(record).items() if name != "progress"}
        if not i:
            yield [*about, *cells]
        numbers = (value if number(value) is not None else value_text(value) for value in cells.values())
        yield [*about.values(), *numbers]


def _figures(records: Sequence[RunRecord], files: FigureFiles) -> Iterator[tuple[str, list[SavedFigure]]]:
    """Yield the curves of the training, then those of the monitors."""
    keys = dict.fromkeys(key for r in records for row in r.losses[-1:] for key in row)
    losses = [key for key in keys if key == "loss" or key.endswith("/loss")]
    yield (
        "Training",
        [saved for key in (*losses, "learning_rate") if (saved := _figure(records, key, files)) is not None],
    )
    monitored = dict.fromkeys(key for r in records for row in r.rows if "monitor" in row for key in row)
    shown = [key for key in monitored if key.rpartition("/")[2] not in BASELINES and key not in ("step", "monitor")]
    shown.sort(key=lambda key: not key.endswith(MODEL))  # accuracies first
    yield "Online evaluations", [saved for key in shown if (saved := _figure(records, key, files)) is not None]


def _figure(records: Sequence[RunRecord], key: str, files: FigureFiles) -> SavedFigure | None:
    """Draw one key of metrics.jsonl, a line for each run; None where no run has a curve of it that changes."""
    curves = {record.name: _curve(record, key) for record in records}
    if not any(len({value for _, value in curve}) > 1 for curve in curves.values()):
        return None
    batches = {number(record.config.get("train.batch")) for record in records}
    scaled = len(batches) > 1 and None not in batches  # steps of other batches are other amounts of training
    series = {
        record.name: [
            Point(step * (record.config["train.batch"] if scaled else 1), y) for step, y in curves[record.name]
        ]
        for record in records
    }
    values = [value for curve in curves.values() for _, value in curve]
    is_loss = key == "loss" or key.endswith("/loss")
    name = metric_title(key)
    ends = ", ".join(f"{run} {curve[-1][1]:.4g}" for run, curve in curves.items() if curve)
    drawing = draw_lines(
        name, f"{name} of each run over the training; last values: {ends}.", series,
        XAxis("images seen" if scaled else "step"), f"{name} (%)" if key.endswith(MODEL) else name, markers=False,
        references=_baselines(records, key), log=is_loss and min(values) > 0 and max(values) > LOG_RATIO * min(values),
    )  # fmt: skip
    return files.add(key, drawing)


def _curve(record: RunRecord, key: str) -> Curve:
    """Return the values of a key by step, long curves as means over equal numbers of rows."""
    points = [(int(row["step"]), float(v)) for row in record.rows if (v := number(row.get(key))) is not None]
    size = -(-len(points) // MOST_POINTS) or 1
    parts = (points[i : i + size] for i in range(0, len(points), size))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _baselines(records: Sequence[RunRecord], key: str) -> Mapping[str, float]:
    """Return the figures beside a network's that do not depend on the training; the range of runs that differ."""
    if not key.endswith(MODEL):
        return {}
    references: dict[str, float] = {}
    for baseline in BASELINES:
        name = key.removesuffix(MODEL) + f"/{baseline}"
        values = {v for r in records for row in r.rows if (v := number(row.get(name))) is not None}
        ends = sorted({min(values), max(values)}) if values else []
        for value, suffix in zip(ends, ("", "") if len(ends) < 2 else (", lowest", ", highest"), strict=False):
            references[baseline + suffix] = value
    return references

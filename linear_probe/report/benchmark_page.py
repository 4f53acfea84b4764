"""The page of a benchmark: accuracies with marks, differences as forest plots, mean ranks, bars of each data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linear_probe.comparison import Column, Comparison, kind_name
from linear_probe.report.document import (
    BEST,
    NEAR,
    PageSection,
    PageTable,
    TableCell,
    TableLine,
    render_document,
    write_files,
)
from linear_probe.report.forest import draw_forest
from linear_probe.report.plotting import INTERVAL, Bar, describe_error_bars, draw_bars
from linear_probe.report.ranks import draw_ranks
from linear_probe.report.rendering import FigureFiles, SavedFigure, csv_text, file_name
from linear_probe.report.tables import escape_latex, latex_table
from linear_probe.results import Result, describe_features, percent, title
from linear_probe.statistics import Interval, critical_difference

MARKS = "Bold: the best; ~: not worse than the best beyond noise"


@dataclass(frozen=True)
class Kind:
    """Columns of one task and protocol, one for each data set.

    Attributes:
        name: of the task and protocol.
        columns: the columns.
        best: column -> the encoder with the best value.
        near: column -> the encoders within noise of it.
        differences: data set -> {encoder: first encoder minus this one}.
    """

    name: str
    columns: Sequence[Column]
    best: Mapping[Column, str]
    near: Mapping[Column, set[str]]
    differences: Mapping[str, Mapping[str, Interval]]

    def mark(self, column: Column, encoder: str) -> str:
        """Return BEST, NEAR or nothing for an encoder in a column with several."""
        return BEST if encoder == self.best[column] else NEAR if encoder in self.near[column] else ""


def write_benchmark(comparison: Comparison, out: Path, title: str, lead: str, notes: Sequence[str] = ()) -> None:
    """Write index.html, accuracies.csv, differences.csv, and for each task and protocol figures and a LaTeX table.

    Args:
        comparison: results of the encoders.
        out: folder; tables/ and figures/ are made in it.
        title: heading of the page.
        lead: what was measured, in a sentence or two.
        notes: doubts about single results, in sentences.
    """
    files, kinds = FigureFiles(), list(kinds_of(comparison))
    tables = {
        f"tables/{file_name(name, files.used)}.tex": _latex(comparison, name, of, lead)
        for name, of in _paper_tables(comparison, kinds).items()
    }
    files.used.clear()  # figures have a folder of their own
    sections = [PageSection("Accuracies", "", [_accuracies(comparison, kinds)])]
    if ranks := _ranks(comparison, kinds):
        sections.append(
            PageSection("Mean ranks over the data sets", "", [ranks], list(_rank_figures(comparison, files)))
        )
    limits = difference_limits(comparison, kinds)
    sections += [
        PageSection(
            kind.name,
            figures=list(_kind_figures(comparison, kind, files, limits.get(_measure(comparison, kind)))),
        )
        for kind in kinds
    ]
    if notes:
        lines = [TableLine(note, []) for note in notes]
        sections.append(PageSection("Warnings", tables=[PageTable("warning", [], lines)]))
    note = "A heading sorts; a name opens how an encoder was read; figures have their files below them."
    page = render_document(title, lead, note, sections)
    texts = {
        **tables,
        "accuracies.csv": csv_text(_accuracy_rows(comparison, kinds)),
        "differences.csv": csv_text(_difference_rows(comparison, kinds)),
        "index.html": page,
    }
    write_files(out, {**files.contents, **texts})


def kinds_of(comparison: Comparison) -> Iterator[Kind]:
    """Yield the tasks and protocols in the order of the results."""
    first, *others = comparison.encoders
    for task, protocol in dict.fromkeys((column.task, column.protocol) for column in comparison.results):
        columns = [column for column in comparison.results if (column.task, column.protocol) == (task, protocol)]
        several = [column for column in columns if len(comparison.results[column]) > 1]
        differences = {
            column.data: {e: d for e in others if (d := comparison.difference(column, first, e)) is not None}
            for column in columns
        }
        yield Kind(
            kind_name(task, protocol),
            columns,
            {column: comparison.best(column) if column in several else "" for column in columns},
            {column: comparison.near_best(column) if column in several else set() for column in columns},
            {data: of for data, of in differences.items() if of},
        )


def _accuracies(comparison: Comparison, kinds: Sequence[Kind]) -> PageTable:
    columns = [(kind, column) for kind in kinds for column in kind.columns]
    lines = []
    for encoder in comparison.encoders:
        cells = [_cell(comparison.results[column].get(encoder), kind.mark(column, encoder)) for kind, column in columns]
        lines.append(TableLine(encoder, cells, list(_details(comparison, kinds, encoder))))
    caption = f"{MARKS} ({INTERVAL} of the difference). ± is the standard deviation over seeds."
    return PageTable("encoder", [comparison.head(column) for _, column in columns], lines, caption)


def _cell(result: Result | None, mark: str) -> TableCell:
    if result is None:
        return TableCell()
    tip = f"{INTERVAL}: {_interval_text(result)}" if result.low is not None else ""
    return TableCell(percent(result), result.accuracy, mark, tip)


def _interval_text(result: Result) -> str:
    return "" if result.low is None or result.high is None else f"[{result.low:.2f}, {result.high:.2f}]"


def _details(comparison: Comparison, kinds: Sequence[Kind], encoder: str) -> Iterator[tuple[str, str, bool]]:
    """Yield how an encoder was read on every data set, and the commands."""
    results = [(c, r) for k in kinds for c in k.columns if (r := comparison.results[c].get(encoder)) is not None]
    for column, r in results:
        text = f"{percent(r)} {_interval_text(r)}".strip()
        yield comparison.head(column), f"{text}; {describe_features(r)}, {r.dimensions} dimensions", False
    for command in dict.fromkeys(r.command for _, r in results):
        yield "command", command, True
    for checkpoint in dict.fromkeys(r.checkpoint for _, r in results if r.checkpoint != "none"):
        yield "checkpoint", checkpoint, True


def _ranks(comparison: Comparison, kinds: Sequence[Kind]) -> PageTable | None:
    """Return the mean ranks with their critical differences; None for one encoder or one data set."""
    names = {(kind.columns[0].task, kind.columns[0].protocol): kind.name for kind in kinds}
    ranked = {key: pair for key, pair in comparison.mean_ranks().items() if pair[1] > 1}
    if not ranked:
        return None
    best = {key: min(ranks.values()) for key, (ranks, _) in ranked.items()}
    lines = []
    for encoder in comparison.encoders:
        cells = []
        for key, (ranks, _) in ranked.items():
            rank = ranks.get(encoder)
            is_best = BEST if rank == best[key] else ""
            cells.append(TableCell() if rank is None else TableCell(f"{rank:.2f}", rank, is_best))
        lines.append(TableLine(encoder, cells))
    least = [critical_difference(len(ranks), count) for ranks, count in ranked.values()]
    lines.append(TableLine("critical difference", [TableCell(f"{value:.2f}", value) for value in least]))
    caption = "1 is the best. Two encoders differ from the critical difference on (Nemenyi's test at 0.05)."
    return PageTable("encoder", [names[key] for key in ranked], lines, caption)


def _rank_figures(comparison: Comparison, files: FigureFiles) -> Iterator[SavedFigure]:
    for (task, protocol), (ranks, count) in comparison.mean_ranks().items():
        if count > 1:
            name = kind_name(task, protocol)
            yield files.add(f"ranks-{name}", draw_ranks(f"Mean ranks, {name}", ranks, count))


def _kind_figures(
    comparison: Comparison, kind: Kind, files: FigureFiles, limits: tuple[float, float] | None
) -> Iterator[SavedFigure]:
    """Yield bars of each data set on one scale, and the differences to the first encoder."""
    of_column = {column: comparison.results[column] for column in kind.columns}
    longest = max(_end(r) for results in of_column.values() for r in results.values())
    for column, results in of_column.items():
        bars = [
            Bar(e, r.accuracy, r.deviation, r.checkpoint == "none", _interval(r))
            for e in sorted(
                comparison.encoders, key=lambda e: results[e].checkpoint == "none" if e in results else True
            )
            if (r := results.get(e)) is not None
        ]
        values = "; ".join(f"{bar.name} {bar.value:.2f}" for bar in bars)
        label = _measure(comparison, kind)
        drawing = draw_bars(str(column), f"{label}: {values}.", bars, "series-0", label, longest)
        caption = describe_error_bars((r.deviation, _interval(r)) for r in results.values())
        yield files.add(f"{kind.name}-{column.data}", drawing, caption)
    if kind.differences:
        first = comparison.encoders[0]
        heading = f"{first} minus the others, {kind.name}"
        drawing = draw_forest(heading, kind.differences, "difference in percentage points", limits)
        yield files.add(f"differences-{kind.name}", drawing, f"{INTERVAL}; hollow: contains 0.")


def difference_limits(comparison: Comparison, kinds: Sequence[Kind]) -> dict[str, tuple[float, float]]:
    """Return {measure: ends of all its differences}, so that the forest plots of a measure have one scale."""
    limits: dict[str, tuple[float, float]] = {}
    for kind in kinds:
        ends = [end for of in kind.differences.values() for d in of.values() for end in (d.low, d.high)]
        ends += limits.get(measure := _measure(comparison, kind), (0.0,))
        limits[measure] = (min(ends), max(ends))
    return limits


def _measure(comparison: Comparison, kind: Kind) -> str:
    """Return the name of what a task and protocol measures, with its unit."""
    return _axis_label(next(iter(comparison.results[kind.columns[0]].values())))


def _axis_label(result: Result) -> str:
    """Return the name of what was measured; results of other measures than accuracy have its name as `measure`."""
    return f"{getattr(result, 'measure', '') or 'top-1 accuracy'} (%)"


def _interval(result: Result) -> tuple[float, float] | None:
    return None if result.low is None or result.high is None else (result.low, result.high)


def _end(result: Result) -> float:
    """Return the end of a bar with its error bar."""
    if result.deviation is not None:
        return result.accuracy + result.deviation
    return max(result.accuracy, result.high if result.high is not None else result.accuracy)


def _accuracy_rows(comparison: Comparison, kinds: Sequence[Kind]) -> Iterator[list[str | float | None]]:
    """Yield a header and a row for each result."""
    yield [
        "encoder", "data", "task", "protocol", "percent", "standard deviation", "interval low", "interval high",
        "images", "mark",
    ]  # fmt: skip
    for kind in kinds:
        for column in kind.columns:
            for encoder, r in comparison.results[column].items():
                place = [encoder, column.data, column.task, column.protocol]
                yield [*place, r.accuracy, r.deviation, r.low, r.high, r.images, kind.mark(column, encoder)]


def _difference_rows(comparison: Comparison, kinds: Sequence[Kind]) -> Iterator[list[str | float | None]]:
    """Yield a header and a row for each difference to the first encoder."""
    yield ["encoder", "minus", "data", "task and protocol", "difference", "interval low", "interval high"]
    for kind in kinds:
        for data, of in kind.differences.items():
            for encoder, d in of.items():
                yield [comparison.encoders[0], encoder, data, kind.name, d.mean, d.low, d.high]


def _paper_tables(comparison: Comparison, kinds: Sequence[Kind]) -> dict[str, list[Kind]]:
    """Return {name: columns of a table}: a protocol on all data sets, or, on one data set, all protocols of a task."""
    if not comparison.has_one_data_set:
        return {kind.name: [kind] for kind in kinds}
    tables: dict[str, list[Kind]] = {}
    for kind in kinds:
        tables.setdefault(kind.columns[0].task, []).append(kind)
    return tables


def _latex(comparison: Comparison, name: str, kinds: Sequence[Kind], lead: str) -> str:
    """Return a table for a paper: encoders as rows; data sets, and their mean rank, or protocols as columns."""
    columns = [(kind, column) for kind in kinds for column in kind.columns]
    ranks, count = comparison.mean_ranks().get((kinds[0].columns[0].task, kinds[0].columns[0].protocol), ({}, 0))
    lines = []
    for encoder in comparison.encoders:
        cells = [escape_latex(encoder)]
        for kind, column in columns:
            r, mark = comparison.results[column].get(encoder), kind.mark(column, encoder)
            text = "" if r is None else escape_latex(percent(r))
            cells.append(f"\\textbf{{{text}}}" if mark == BEST else f"\\underline{{{text}}}" if mark == NEAR else text)
        cells += [f"{ranks[encoder]:.2f}" if encoder in ranks else ""] * (count > 1)
        lines.append(cells)
    one = comparison.has_one_data_set
    heads = [title(column.protocol) if one else column.data for _, column in columns]
    head = [escape_latex(text) for text in ("encoder", *heads, *["mean rank"] * (count > 1))]
    note = f"{lead} {'Task' if one else 'Protocol'}: {name}. Bold: the best; underlined: not worse beyond noise."
    return latex_table(escape_latex(note), f"benchmark {name}", "l" + "r" * (len(head) - 1), [head], [lines])

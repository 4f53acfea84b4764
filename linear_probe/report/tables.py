"""Tables of a report: the columns, the same in every format, and the tables in Markdown, LaTeX and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from linear_probe.agreement import agreement
from linear_probe.report.contents import PAPER, TRIAL, Contents, Entry, chosen_on
from linear_probe.report.plotting import with_deviation
from linear_probe.report.rendering import csv_text
from linear_probe.results import Result, describe_features, markdown, title

COLUMN, LETTER, SPACE = 240.0, 4.4, 8.0  # points: a column of a two-column paper, a small letter, between two columns
GRID = "grid"  # heading of the names of grids
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def _nothing(entry: Entry) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        head: its heading.
        text: of an entry; empty where there is nothing.
        value: the number to sort by; None for a column of words.
        tip: more about the entry's text, shown when it is pointed at.
        about: description of the column.
        source: `paper` for published numbers, `ours` for accuracies of a protocol, `plain` otherwise.
        best: the highest value among trials, which is marked; None for no mark.
    """

    head: str
    text: Callable[[Entry], str]
    value: Callable[[Entry], float | None] | None = None
    tip: Callable[[Entry], str] = _nothing
    about: str = ""
    source: str = "plain"
    best: float | None = None

    def is_best(self, entry: Entry) -> bool:
        """Return whether an entry is a trial with the best value of the column."""
        return (
            self.best is not None
            and self.value is not None
            and entry.row is not None
            and self.value(entry) == self.best
        )


def columns(contents: Contents) -> list[Column]:
    """Return all columns that hold something, without the name's."""
    protocols = [_with_best(protocol_column(name, source), contents) for name, source in contents.protocols.items()]
    every = [*_grids(contents), _paper(), *protocols, _seeds(), _images(), *_hours(contents), _commit(), _checkpoint()]
    return [c for c in every if any(c.text(entry) for entry in contents.entries)]


def _with_best(column: Column, contents: Contents) -> Column:
    """Mark the best of several trials."""
    assert column.value is not None
    values = [value for e in contents.entries if e.row and (value := column.value(e)) is not None]
    return replace(column, best=max(values)) if len(values) > 1 else column


def percent(result: Result | None) -> str:
    """Return the accuracy in percent, two digits, with its standard deviation over seeds if there are several."""
    if result is None:
        return ""
    return with_deviation(result.accuracy, result.deviation, 2)


def protocol_column(name: str, source: str) -> Column:
    """Return the column of the accuracies of one protocol."""

    def tip(entry: Entry) -> str:
        r = entry.results.get(name)
        return "" if r is None else f"{describe_features(r)}; chosen on {chosen_on(r)}"

    def value(entry: Entry) -> float | None:
        return entry.results[name].accuracy if name in entry.results else None

    return Column(title(name), lambda e: percent(e.results.get(name)), value, tip, source, "ours")


def hours(value: float) -> str:
    """Return hours with two decimals; of less than a tenth, two significant digits."""
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def seeds(entry: Entry) -> list[int]:
    """Return the seeds of all results of an entry, sorted."""
    return sorted({s for r in entry.results.values() for s in (r.seeds or [r.seed])})


def checkpoints(entry: Entry) -> list[str]:
    """Return the SHA-256 of every checkpoint that was scored."""
    return [c for c in dict.fromkeys(r.checkpoint for r in entry.results.values()) if c != "none"]


def _grids(contents: Contents) -> list[Column]:
    groups = contents.groups()
    grid = Column(GRID, lambda e: e.row.grid if e.row else "")
    budget = Column("budget", lambda e: e.row.budget if e.row else "", about="length of pretraining")
    return [c for c, i in ((grid, 0), (budget, 1)) if len({key[i] for key in groups}) > 1]


def _paper() -> Column:
    def value(entry: Entry) -> float | None:
        return entry.row.paper if entry.row else None

    def text(entry: Entry) -> str:
        accuracy = value(entry)
        return "" if accuracy is None else f"{accuracy:.2f}"

    about = "printed in the paper, for other data and a larger network: compare orders, not values"
    return Column(PAPER, text, value, lambda e: e.row.paper_source if e.row else "", about, "paper")


def _seeds() -> Column:
    about = "of the run, or of the repetitions behind a mean"
    return Column("seeds", lambda e: ", ".join(map(str, seeds(e))), about=about)


def _images() -> Column:
    def text(entry: Entry) -> str:
        return f"{entry.row.images:,}" if entry.row else ""

    about = "in pretraining, with repetitions"
    return Column("images seen", text, lambda e: e.row.images if e.row else None, about=about)


def _hours(contents: Contents) -> list[Column]:
    """Return a column for each unit: core-hours and GPU-hours are not comparable."""
    return [_hours_of(unit) for unit in dict.fromkeys(row.unit for row in contents.rows)]


def _hours_of(unit: str) -> Column:
    def value(entry: Entry) -> float | None:
        return entry.row.hours if entry.row and entry.row.unit == unit else None

    def text(entry: Entry) -> str:
        cost = value(entry)
        return "" if cost is None else hours(cost)

    return Column(f"{unit}-hours", text, value, about="pretraining and the tokenizer's training")


def _commit() -> Column:
    def commit(entry: Entry) -> str:
        result = entry.any_result
        return entry.row.commit if entry.row else result.commit if result else ""

    return Column("commit", lambda e: commit(e)[:7], tip=commit)


def _checkpoint() -> Column:
    def short(entry: Entry) -> str:
        return ", ".join(c[:8] for c in checkpoints(entry))

    return Column("checkpoint", short, tip=lambda e: ", ".join(checkpoints(e)), about="SHA-256 of its manifest")


def escape_markdown(text: str) -> str:
    """Escape `text` for a cell of a table in GitHub's syntax."""
    flat = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<>|&]", lambda m: "\\" + m[0], flat)


def escape_latex(text: str) -> str:
    """Escape `text` for LaTeX."""
    return "".join(LATEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def table_md(contents: Contents) -> str:
    """Return the table in GitHub's syntax, a description of its columns, and the rank correlations."""
    shown = columns(contents)

    def cell(column: Column, entry: Entry) -> str:
        text = escape_markdown(column.text(entry))
        return f"**{text}**" if column.is_best(entry) else text

    head = [escape_markdown(text) for text in ("trial", *(c.head for c in shown))]
    body = [[escape_markdown(_name(entry)), *(cell(c, entry) for c in shown)] for entry in contents.entries]
    parts = [f"# {escape_markdown(contents.title)}", escape_markdown(_caption(contents, shown))]
    parts.append(markdown([head, *body]))
    parts.append("\n".join(f"- {escape_markdown(c.head)}: {escape_markdown(c.about)}" for c in shown if c.about))
    if sentences := correlations(contents):
        parts.append("\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences))
    return "\n\n".join(parts) + "\n"


def table_csv(contents: Contents) -> str:
    """Return every column of the table as CSV, accuracies without marks."""
    shown = columns(contents)
    rows = [[entry.name, entry.kind, *(c.text(entry) for c in shown)] for entry in contents.entries]
    return csv_text([["trial", "kind", *(c.head for c in shown)], *rows])


def table_tex(contents: Contents) -> str:
    """Return the table for a paper, in LaTeX with booktabs: names and accuracies, the best trial bold.

    Trials stand above the rule, baselines below it. Cost, seeds, commits and checkpoints are in the other tables.
    """
    shown = [c for c in columns(contents) if c.source != "plain" or c.head == GRID]

    def line(entry: Entry) -> list[str]:
        return [escape_latex(entry.name), *(latex_cell(c.text(entry), c.is_best(entry)) for c in shown)]

    blocks = [[line(e) for e in contents.entries if (e.row is None) is is_baseline] for is_baseline in (False, True)]
    heads = ("trial", *(c.head.partition(":")[0] if c.source == "paper" else c.head for c in shown))
    head = [escape_latex(text) for text in heads]
    align = "l" + "".join("r" if c.value else "l" for c in shown)
    return latex_table(escape_latex(_caption(contents, shown)), contents.title, align, [head], blocks)


def latex_cell(text: str, is_best: bool) -> str:
    """Return a number for a cell of a table in LaTeX."""
    return f"\\textbf{{{escape_latex(text)}}}" if is_best else escape_latex(text)


def latex_table(
    caption: str, label: str, align: str, head: Sequence[Sequence[str]], blocks: Sequence[Sequence[Sequence[str]]]
) -> str:
    """Return a floating table in LaTeX, over both columns of a two-column page where one is too narrow for it.

    Args:
        caption: in LaTeX.
        label: text that the label is made of.
        align: column types of tabular.
        head: lines above the first rule, cells in LaTeX.
        blocks: lines with a rule between each two blocks; empty blocks are left out.
    """

    def lines(of_block: Sequence[Sequence[str]]) -> str:
        return "".join(" & ".join(cells) + " \\\\\n" for cells in of_block)

    rows = [*head, *(cells for block in blocks for cells in block)]
    letters = sum(max(len(re.sub(r"\\\\\w+|[{}$]", "", cell)) for cell in column) for column in zip(*rows, strict=True))
    kind = "table*" if LETTER * letters + SPACE * len(align) > COLUMN else "table"
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    body = "\\midrule\n".join(lines(block) for block in blocks if block)
    return (
        "% needs \\usepackage{booktabs}\n"
        f"\\begin{{{kind}}}\n\\centering\n\\small\n\\setlength{{\\tabcolsep}}{{4pt}}\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{name}}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
        f"{lines(head)}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n\\end{{{kind}}}\n"
    )


def results_jsonl(contents: Contents) -> str:
    """Return every result as a flat line of JSON, with grid, trial, axes and the paper's number; null for baselines."""
    lines = []
    for entry in contents.entries:
        row = entry.row
        where = {name: getattr(row, name, None) for name in ("grid", "trial", "axes", "budget", "paper")}
        lines += [json.dumps({**where, "kind": entry.kind, **asdict(r)}) for r in entry.results.values()]
    return "\n".join(lines) + "\n"


def correlations(contents: Contents) -> list[str]:
    """Return a sentence on the rank correlation with the paper for each grid and protocol that has one."""
    sentences = []
    for (grid, budget), trials in contents.groups().items():
        for protocol in contents.protocols:
            a = agreement([e.row for e in trials if e.row], protocol)
            if a is not None:
                where = f"{grid} ({budget}), {title(protocol)}"
                sentences.append(f"{where}: Spearman's rank correlation with the paper's order {a} (n = {a.count})")
    return sentences


def facts(contents: Contents) -> str:
    """Return the facts that all accuracies of the report share."""
    r = contents.results[0]
    labels = "all labels" if r.labels == "all" else f"{r.labels} of the labels"
    return f"Top-1 accuracy in percent on {r.images:,} images of {r.data}, {r.split} split; probes fitted on {labels}"


def _caption(contents: Contents, shown: Sequence[Column]) -> str:
    """Return the facts of a table, and what it marks."""
    caption = facts(contents) + "."
    if any(row.paper is not None for row in contents.rows):
        caption += f" The {PAPER.partition(':')[0]}'s column is of other data and a larger network"
        caption += f" ({PAPER.partition(': ')[2]}): compare orders, not values."
    if any(r.deviation is not None for r in contents.results):
        caption += " Mean ± standard deviation over seeds."
    return caption + (" Bold: the best trial." if any(c.best is not None for c in shown) else "")


def _name(entry: Entry) -> str:
    return entry.name if entry.kind == TRIAL else f"{entry.name} ({entry.kind})"

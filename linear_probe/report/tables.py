"""Tables of a report: the columns, the same in every format, and the tables in Markdown, LaTeX and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from linear_probe.agreement import agreement
from linear_probe.report.contents import PAPER, TRIAL, Contents, Entry, chosen_on
from linear_probe.report.plotting import with_deviation
from linear_probe.results import Result, describe_features, markdown, title

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
    """

    head: str
    text: Callable[[Entry], str]
    value: Callable[[Entry], float | None] | None = None
    tip: Callable[[Entry], str] = _nothing
    about: str = ""
    source: str = "plain"


def columns(contents: Contents) -> list[Column]:
    """Return all columns that hold something, without the name's."""
    protocols = [protocol_column(name, source) for name, source in contents.protocols.items()]
    every = [*_grids(contents), _paper(), *protocols, _seeds(), _images(), *_hours(contents), _commit(), _checkpoint()]
    return [c for c in every if any(c.text(entry) for entry in contents.entries)]


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
    grid = Column("grid", lambda e: e.row.grid if e.row else "")
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
    head = ["trial", *(c.head for c in shown)]
    body = [[_name(entry), *(c.text(entry) for c in shown)] for entry in contents.entries]
    parts = [f"# {escape_markdown(contents.title)}", escape_markdown(_caption(contents))]
    parts.append(markdown([[escape_markdown(text) for text in line] for line in [head, *body]]))
    parts.append("\n".join(f"- {escape_markdown(c.head)}: {escape_markdown(c.about)}" for c in shown if c.about))
    if sentences := correlations(contents):
        parts.append("\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences))
    return "\n\n".join(parts) + "\n"


def table_tex(contents: Contents) -> str:
    """Return the table for a paper, in LaTeX with booktabs: trials above the rule, baselines below."""
    shown = columns(contents)
    blocks = [[e for e in contents.entries if (e.row is None) is is_baseline] for is_baseline in (False, True)]
    head = _line_tex(["trial", *(c.head for c in shown)])
    body = "\\midrule\n".join("".join(_entry_tex(e, shown) for e in block) for block in blocks if block)
    align = "l" + "".join("r" if c.value or c.source != "plain" else "l" for c in shown)
    note = escape_latex(_caption(contents))
    return (
        f"% {note}\n% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{head}\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n"
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


def _caption(contents: Contents) -> str:
    note = " The paper's column is of other data and a larger network: compare orders, not values."
    return facts(contents) + "." + (note if any(row.paper is not None for row in contents.rows) else "")


def _name(entry: Entry) -> str:
    return entry.name if entry.kind == TRIAL else f"{entry.name} ({entry.kind})"


def _entry_tex(entry: Entry, shown: Sequence[Column]) -> str:
    return _line_tex([_name(entry), *(c.text(entry) for c in shown)])


def _line_tex(texts: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + r" \\" + "\n"

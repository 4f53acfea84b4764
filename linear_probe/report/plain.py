"""The tables for documents: GitHub's syntax and LaTeX's, and every result as a line of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from linear_probe.agreement import agreement
from linear_probe.report.columns import Column, columns
from linear_probe.report.contents import Contents, Entry
from linear_probe.results import markdown

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def escape_markdown(text: str) -> str:
    """`text` as GitHub shows it to the letter, in a cell of a table."""
    flat = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<>|&]", lambda m: "\\" + m[0], flat)


def escape_latex(text: str) -> str:
    """`text` as LaTeX prints it to the letter."""
    return "".join(LATEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def table_md(contents: Contents) -> str:
    """The table, what its columns are, and how far the order is the paper's."""
    shown = columns(contents)
    head = ["cell", *(c.head for c in shown)]
    body = [[_name(entry), *(c.text(entry) for c in shown)] for entry in contents.entries]
    parts = [f"# {escape_markdown(contents.title)}", escape_markdown(_caption(contents))]
    parts.append(markdown([[escape_markdown(text) for text in line] for line in [head, *body]]))
    parts.append("\n".join(f"- {escape_markdown(c.head)}: {escape_markdown(c.about)}" for c in shown if c.about))
    found = correlations(contents)
    if found:
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in found))
    return "\n\n".join(parts) + "\n"


def table_tex(contents: Contents) -> str:
    """The table for a paper: booktabs, cells above the rule, baselines and floors below."""
    shown = columns(contents)
    blocks = [[e for e in contents.entries if (e.row is None) is apart] for apart in (False, True)]
    head = _line_tex(["cell", *(c.head for c in shown)])
    body = "\\midrule\n".join("".join(_entry_tex(e, shown) for e in block) for block in blocks if block)
    align = "l" + "".join("r" if c.value or c.mark != "plain" else "l" for c in shown)
    note = escape_latex(_caption(contents))
    return (
        f"% {note}\n% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{head}\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def results_jsonl(contents: Contents) -> str:
    """Every result in a line, flat, with the grid, the cell, its axes and the paper's number; null for the others."""
    lines = []
    for entry in contents.entries:
        row = entry.row
        where = {name: getattr(row, name, None) for name in ("grid", "trial", "axes", "budget", "paper")}
        lines += [json.dumps({**where, "kind": entry.kind, **asdict(r)}) for r in entry.results.values()]
    return "\n".join(lines) + "\n"


def correlations(contents: Contents) -> list[str]:
    """A sentence for each grid and protocol on how far its order is the paper's, where that can be said."""
    found = []
    for (grid, budget), trials in contents.groups().items():
        for protocol in contents.protocols:
            a = agreement([e.row for e in trials if e.row], protocol)
            if a is not None:
                where = f"{grid} ({budget}), {protocol}"
                found.append(f"{where}: Spearman's rank correlation with the paper's order {a} (n = {a.count})")
    return found


def facts(contents: Contents) -> str:
    """Return the facts that all figures of the report share."""
    r = contents.results[0]
    labels = "all labels" if r.labels == "all" else f"{r.labels} of the labels"
    return f"Top-1 accuracy in percent on {r.images:,} images of {r.data}, {r.split} split; probes fitted on {labels}"


def _caption(contents: Contents) -> str:
    apart = " The paper's column is of other data and a larger network: compare orders, not values."
    return facts(contents) + "." + (apart if any(row.paper is not None for row in contents.rows) else "")


def _name(entry: Entry) -> str:
    return entry.name if entry.kind == "cell" else f"{entry.name} ({entry.kind})"


def _entry_tex(entry: Entry, shown: Sequence[Column]) -> str:
    return _line_tex([_name(entry), *(c.text(entry) for c in shown)])


def _line_tex(texts: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + r" \\" + "\n"

"""The table of the page: sortable, searchable, every line with all that is needed to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from linear_probe.report.columns import Column, checkpoints, chosen_on, columns, hours, percent
from linear_probe.report.contents import Contents, Entry
from linear_probe.report.svg import escape
from linear_probe.results import Result


def table_html(contents: Contents) -> str:
    """The whole table."""
    shown = columns(contents)
    heads = [_head("cell", "", "name", False), *(_head(c.head, c.about, c.mark, c.value is not None) for c in shown)]
    body = "".join(_line(entry, shown) for entry in contents.entries)
    return f'<table id="results"><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table>'


def axes_text(axes: Mapping[str, Any]) -> str:
    """A cell's place in its grid, in words."""
    return ", ".join(f"{name} {value}" for name, value in axes.items())


def _head(name: str, about: str, kind: str, numeric: bool) -> str:
    title = f' title="{escape(about)}"' if about else ""
    right = " n" if numeric else ""
    button = f"<button type=button{title}>{escape(name)}</button>"
    return f'<th scope="col" class="{kind}{right}" aria-sort="none">{button}</th>'


def _line(entry: Entry, shown: Sequence[Column]) -> str:
    trials = "".join(_cell(entry, column) for column in shown)
    return f'<tr class="{entry.kind}">{_name(entry)}{trials}</tr>'


def _cell(entry: Entry, column: Column) -> str:
    value = column.value(entry) if column.value else None
    sort = "" if value is None else f' data-v="{value!r}"'
    tip = column.tip(entry)
    title = f' title="{escape(tip)}"' if tip and column.text(entry) else ""
    kind = column.mark + (" n" if column.value else "")
    return f'<td class="{kind}"{sort}{title}>{escape(column.text(entry))}</td>'


def _name(entry: Entry) -> str:
    badge = "" if entry.kind == "cell" else f' <span class="badge">{entry.kind}</span>'
    facts = "".join(f"<dt>{escape(what)}</dt><dd>{message}</dd>" for what, message in _facts(entry))
    summary = f"<summary>{escape(entry.name)}{badge}</summary>"
    return f'<th scope="row" class="name"><details>{summary}<dl>{facts}</dl></details></th>'


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield the facts that an opened line shows, as HTML."""
    row = entry.row
    if row is not None:
        if row.axes:
            yield "axes", escape(axes_text(row.axes))
        yield "pretraining", f"<code>{escape(row.command)}</code>"
        yield (
            "budget",
            escape(f"{row.budget}: {row.images:,} images, {hours(row.hours)} {row.unit}-hours, {row.commit}"),
        )
        if row.paper is not None:
            yield "paper", escape(f"{row.paper:.2f}: {row.paper_source}")
    for command in dict.fromkeys(r.command for r in entry.results.values()):
        yield "probing", f"<code>{escape(command)}</code>"
    for name, result in entry.results.items():
        yield name, escape(_told(result))
    for checkpoint in checkpoints(entry):
        yield "checkpoint", f"<code>{escape(checkpoint)}</code>"


def _told(r: Result) -> str:
    chosen = {k: v for k, v in r.selected.items() if k not in ("among", "cell")}
    setting = "".join(f", {k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in chosen.items())
    return (
        f"{percent(r)}; layer {r.layer}, t = {r.t}, {r.input}, {r.pooling}, {r.dimensions} dimensions{setting}; "
        f"{r.selected_accuracy:.2f} on {chosen_on(r)}, where it was chosen; {r.hardware}; {r.date[:10]}; {r.commit}"
    )

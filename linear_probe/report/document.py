"""Pages of sections with figures and sortable tables: one file that contains everything it shows and loads nothing."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linear_probe.report.plotting import COLORS
from linear_probe.report.rendering import SavedFigure

BEST, NEAR = "best", "near"  # marks of a cell


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: the number to sort by; None for text.
        mark: BEST, NEAR (within noise of the best), or empty.
        tip: more about the text, shown when it is pointed at.
    """

    text: str = ""
    value: float | None = None
    mark: str = ""
    tip: str = ""


@dataclass(frozen=True)
class TableLine:
    """A line of a table.

    Attributes:
        name: the first cell.
        cells: the others.
        details: label, text, and whether the text is code: shown when the name is opened; none if empty.
        series: number of the line's series in the figures, which a checkbox shows and hides; None for no checkbox.
    """

    name: str
    cells: Sequence[TableCell]
    details: Sequence[tuple[str, str, bool]] = ()
    series: int | None = None


@dataclass(frozen=True)
class PageTable:
    """A table that a reader sorts by its headings and searches.

    Attributes:
        name: what the lines are, above the first column.
        heads: headings of the other columns.
        lines: from the top down.
        caption: below the table.
        is_text: whether the cells are text, aligned left.
    """

    name: str
    heads: Sequence[str]
    lines: Sequence[TableLine]
    caption: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class PageSection:
    """A part of a page: a title, sentences, tables, then figures."""

    title: str
    text: str = ""
    tables: Sequence[PageTable] = ()
    figures: Sequence[SavedFigure] = ()


def render_document(title: str, lead: str, note: str, sections: Sequence[PageSection]) -> str:
    """Return the HTML of a page.

    Args:
        title: heading.
        lead: a sentence or two below it.
        note: smaller text below that; none if empty.
        sections: from the top down.
    """
    return render_template("document.html", title=title, lead=lead, note=note, sections=sections)


def render_template(name: str, **values: Any) -> str:
    """Return a page of a template, with escaped values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("linear_probe.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name).render(colors=COLORS, **values)


def write_files(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files below a folder; each replaces its predecessor in one step.

    Args:
        out: folder, made if it is not there.
        files: {path below the folder: content}, in the order of writing.
    """
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

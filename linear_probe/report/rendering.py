"""Save figures as SVG, PDF, PNG and CSV, and embed them in a page.

Files depend neither on the time nor on the user's matplotlibrc: the same data give the same bytes under the same
matplotlib.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from linear_probe.report.plotting import LIGHT, DataRow, Drawing, figure_style, printable

FORMATS = ("svg", "pdf", "png")
FIGURES = "figures"  # folder of the figures' files, beside the page
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ROLES = {light: f"var(--{role})" for role, light in LIGHT.items()}  # for pages
METADATA: Mapping[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a page and the stem of its files.

    Attributes:
        name: of its files, without a suffix; unique in the report.
        drawing: what is saved.
        caption: below it; empty where the title says all.
    """

    name: str
    drawing: Drawing
    caption: str = ""


@dataclass(frozen=True)
class SavedFigure:
    """A figure as the page and its files have it.

    Attributes:
        svg: markup to embed.
        files: suffix -> path relative to the page.
        caption: below the figure.
    """

    svg: str
    files: Mapping[str, str]
    caption: str


@dataclass
class FigureFiles:
    """Save figures in memory.

    Attributes:
        contents: path relative to the page -> content of every file.
        used: names of files that are taken.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def save(self, figure: ReportFigure) -> SavedFigure:
        """Render a figure in every format and return what the page embeds."""
        rendered = render(figure.drawing)
        files = {suffix: f"{FIGURES}/{figure.name}.{suffix}" for suffix in rendered}
        self.contents |= {files[suffix]: content for suffix, content in rendered.items()}
        return SavedFigure(inline_svg(rendered["svg"], figure.drawing, figure.name), files, figure.caption)

    def add(self, name: str, drawing: Drawing, caption: str = "") -> SavedFigure:
        """Save a drawing under a name that is not taken yet."""
        return self.save(ReportFigure(file_name(name, self.used), drawing, caption))


def file_name(text: str, used: set[str]) -> str:
    """Return a file's stem for `text` that is not in `used`, and add it there."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower().replace("%", "percent")).strip("-.")[:80] or "figure"
    name, count = plain, 1
    while name in used:
        count += 1
        name = f"{plain}-{count}"
    used.add(name)
    return name


def render(drawing: Drawing) -> dict[str, bytes]:
    """Return the content of the figure's files: {"svg": ..., "pdf": ..., "png": ..., "csv": ...}.

    The CSV file has the numbers that are drawn; a figure without any has no such file.
    """
    contents = {}
    with figure_style():
        for form in FORMATS:
            file = io.BytesIO()
            drawing.figure.savefig(file, format=form, metadata=METADATA[form])
            contents[form] = file.getvalue()
    if drawing.data:
        contents["csv"] = csv_text(drawing.data).encode()
    return contents


def csv_text(rows: Iterable[DataRow]) -> str:
    """Return rows as CSV; an empty field for None."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def inline_svg(svg: bytes, drawing: Drawing, name: str) -> str:
    """Return a figure's SVG for a page: colours follow the page's mode, points have tooltips.

    Colours of COLORS become `var(--ROLE)`, ids begin with `name`, and the style sheet, metadata and fonts are left to
    the page.

    Args:
        svg: as `render` has it.
        drawing: of which it is.
        name: unique in the page.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata" or (child.tag, len(child)) == (f"{{{SVG}}}style", 0):
                parent.remove(child)
    linked = {element.get(f"{{{XLINK}}}href", "")[1:] for element in root.iter()}
    linked |= {match for element in root.iter() for match in re.findall(r"url\(#(\w+)\)", element.get("clip-path", ""))}
    for element in root.iter():
        _add_tooltips(element, drawing.tooltips.get(element.get("id", ""), ()))
    for element in root.iter():
        _localise(element, name, linked)
    for tag, text in (("desc", drawing.description), ("title", drawing.title)):
        child = ElementTree.Element(f"{{{SVG}}}{tag}")
        child.text = printable(text)
        root.insert(0, child)
    root.attrib |= {"role": "img", "style": f"--points: {root.attrib.pop('width').removesuffix('pt')}"}
    del root.attrib["height"]
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _add_tooltips(element: ElementTree.Element, texts: Sequence[str]) -> None:
    marks = list(element.iter(f"{{{SVG}}}use")) if len(texts) > 1 else []
    for mark, text in zip(marks or [element], texts, strict=False):
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = printable(text)
        mark.insert(0, title)


def _localise(element: ElementTree.Element, name: str, linked: set[str]) -> None:
    """Make ids unique in a page and colours variables of it; a series keeps its number."""
    own = element.attrib.pop("id", None)
    if own in linked:
        element.set("id", f"{name}-{own}")
    if own and own.startswith("series-"):
        element.set("data-series", own.removeprefix("series-"))
    if reference := element.get(f"{{{XLINK}}}href"):
        element.set(f"{{{XLINK}}}href", f"#{name}-{reference[1:]}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("(#", f"(#{name}-"))
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]+; ?", "", style)
        element.set("style", re.sub(r"#[0-9a-f]{6}", lambda m: ROLES.get(m[0], m[0]), style))

"""Save figures as SVG, PDF and PNG, and embed them in a page.

Files depend neither on the time nor on the user's matplotlibrc: the same data give the same bytes under the same
matplotlib.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from linear_probe.report.plotting import LIGHT, Drawing, figure_style, printable

FORMATS = ("svg", "pdf", "png")
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ROLES = {light: f"var(--{role})" for role, light in LIGHT.items()}  # for pages
METADATA: Mapping[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}


def render(drawing: Drawing) -> dict[str, bytes]:
    """Return the content of the figure's files: {"svg": ..., "pdf": ..., "png": ...}."""
    contents = {}
    with figure_style():
        for form in FORMATS:
            file = io.BytesIO()
            drawing.figure.savefig(file, format=form, metadata=METADATA[form])
            contents[form] = file.getvalue()
    return contents


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
    """Make ids unique in a page and colours variables of it."""
    if (own := element.attrib.pop("id", None)) in linked:
        element.set("id", f"{name}-{own}")
    if reference := element.get(f"{{{XLINK}}}href"):
        element.set(f"{{{XLINK}}}href", f"#{name}-{reference[1:]}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("(#", f"(#{name}-"))
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]+; ?", "", style)
        element.set("style", re.sub(r"#[0-9a-f]{6}", lambda m: ROLES.get(m[0], m[0]), style))

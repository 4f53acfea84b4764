"""Cards of the trials: a picture whose slider moves the noise level, other pictures, heat maps."""

from __future__ import annotations

from collections.abc import Mapping

from linear_probe.report.contents import Entry
from linear_probe.report.grid_html import axes_text
from linear_probe.report.heat import heat
from linear_probe.report.pictures import Album, Picture
from linear_probe.report.svg import escape

SMOOTH = 240  # pixels; a picture that is less wide is enlarged in squares


def card(entry: Entry, album: Album) -> str:
    """One cell; empty if there is nothing to look at."""
    parts = [_strip(entry.name, album.strip)] if album.strip else []
    parts += [_picture(entry.name, what, picture) for what, picture in album.others.items()]
    parts += [f'<p class="quiet">{escape(what)}: {escape(why)}</p>' for what, why in album.missing.items()]
    maps = "".join(f"<figure>{drawn}</figure>" for r in entry.results.values() if (drawn := heat(entry.name, r)))
    if maps:
        parts.append(f"<details><summary>layer by noise level</summary>{maps}</details>")
    if not parts:
        return ""
    axes = axes_text(entry.row.axes) if entry.row and len(entry.row.axes) > 1 else ""  # one is the name itself
    under = f'<p class="quiet">{escape(axes)}</p>' if axes else ""
    return f"<article><h3>{escape(entry.name)}</h3>{under}{''.join(parts)}</article>"


def _strip(name: str, strip: Mapping[int, Picture]) -> str:
    """All levels are there; one is shown. Without scripts the first one stays."""
    pictures = "".join(
        _image(picture, f"{name}: images noised at t = {t} and restored", f' data-t="{t}"' + " hidden" * (i > 0))
        for i, (t, picture) in enumerate(strip.items())
    )
    first = next(iter(strip))
    slider = (
        f'<label><span>noise level</span><input type="range" min="0" max="{len(strip) - 1}" value="0" step="1" '
        f'aria-label="noise level of {escape(name)}" aria-valuetext="t = {first}"></label><output>t = {first}</output>'
    )
    control = f'<div class="slide">{slider}</div>' if len(strip) > 1 else f'<p class="quiet">t = {first}</p>'
    return f'<figure class="strip">{pictures}<figcaption>{control}</figcaption></figure>'


def _picture(name: str, what: str, picture: Picture) -> str:
    return f"<figure>{_image(picture, f'{name}: {what}')}<figcaption>{escape(what)}</figcaption></figure>"


def _image(picture: Picture, alt: str, more: str = "") -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    fine = "" if picture.width >= SMOOTH else ' class="pixels"'
    return f'<img src="{picture.uri}" alt="{escape(alt)}" {size}{fine}{more}>'

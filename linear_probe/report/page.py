"""index.html: one file that holds everything it shows and asks no server for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from linear_probe.agreement import agreement
from linear_probe.report.cards import card
from linear_probe.report.columns import checkpoints, chosen_on, columns, hours, seeds
from linear_probe.report.contents import Contents, Entry
from linear_probe.report.figures import figures, schedules
from linear_probe.report.grid_html import table_html
from linear_probe.report.pictures import albums
from linear_probe.report.plain import facts
from linear_probe.report.svg import escape

HERE = Path(__file__).resolve().parent
NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1>
{lead}</header>
<main>
{sections}
</main>
<script>
{script}</script>
</body>
</html>
"""


def page(contents: Contents, root: Path) -> str:
    """The whole page.

    Args:
        root: folder that the rows' pictures are relative to.
    """
    sections = [*_grids(contents), _schedules(contents), _table(contents), _cells(contents, root), _method(contents)]
    return PAGE.format(
        policy=NOTHING_FROM_OUTSIDE,
        title=escape(contents.title),
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        lead=_lead(contents),
        sections="\n".join(filter(None, sections)),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
    )


def _lead(contents: Contents) -> str:
    counts = f"{len(contents.rows)} cells; {len(contents.beside)} floors and baselines; seeds: "
    counts += ", ".join(map(str, sorted({s for e in contents.entries for s in seeds(e)})))
    return (
        f'<p class="lead">{escape(facts(contents))}.</p>\n'
        f'<p class="quiet">{counts}; pretraining: {" and ".join(_hours(contents))} in all.</p>\n'
    )


def _hours(contents: Contents) -> list[str]:
    """Return the cost of all trials, each checkpoint once: trials that read one network share its pretraining."""
    runs = {tuple(checkpoints(e)) or e.name: e.row for e in contents.entries if e.row}
    units = dict.fromkeys(row.unit for row in runs.values())
    return [f"{hours(sum(row.hours for row in runs.values() if row.unit == unit))} {unit}-hours" for unit in units]


def _grids(contents: Contents) -> Iterator[str]:
    for (grid, budget), trials in contents.groups().items():
        plots = "".join(_figure(*plot) for plot in figures(contents, trials))
        head = f'<h2>{escape(grid)} <span class="quiet">budget {escape(budget)}</span></h2>'
        yield f'<section>{head}{_ranks(contents, trials)}<div class="plots">{plots}</div></section>'


def _figure(drawn: str, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawn}{below}</figure>"


def _ranks(contents: Contents, trials: Sequence[Entry]) -> str:
    found = [(p, a) for p in contents.protocols if (a := agreement([e.row for e in trials if e.row], p))]
    if not found:
        return ""
    items = "".join(
        f"<li><b>{str(a).replace('-', '−')}</b> {escape(p)} <span>n = {a.count}</span></li>" for p, a in found
    )
    return f'<p>Rank correlation with the paper’s order (Spearman)</p><ul class="ranks">{items}</ul>'


def _schedules(contents: Contents) -> str:
    if not contents.curves:
        return ""
    return f'<section><h2>Noise schedules</h2><div class="plots">{_figure(schedules(contents.curves))}</div></section>'


def _table(contents: Contents) -> str:
    paper = any(row.paper is not None for row in contents.rows)
    note = "The paper’s column is of other data and a larger network: compare orders, not values. " * paper
    return (
        f'<section><h2>Every figure</h2><p class="quiet">{note}A heading sorts; a name opens commands and settings.</p>'
        '<div class="tools"><label for="search">Search</label><input id="search" type="search" autocomplete="off">'
        '<span id="count" role="status"></span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="every figure">'
        f"{table_html(contents)}</div></section>"
    )


def _cells(contents: Contents, root: Path) -> str:
    entries = [e for e in contents.entries if e.row]
    found = [card(e, album) for e, album in zip(entries, albums(contents.rows, root), strict=True)]
    if not any(found):
        return ""
    denoising_images = any('class="strip"' in c for c in found)
    together = (
        '<p><label><input id="together" type="checkbox"> move all noise levels together</label></p>' * denoising_images
    )
    return (
        f'<section id="pictures"><h2>Cells to look at</h2>{together}<div class="cards">{"".join(found)}</div></section>'
    )


def _method(contents: Contents) -> str:
    """Return the description of the columns."""
    message = [(c.head, c.about) for c in columns(contents) if c.about]
    hardware = ", ".join(sorted({r.hardware for r in contents.results}))
    dates = sorted(r.date[:10] for r in contents.results)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    chosen = ", ".join(sorted({chosen_on(r) for r in contents.results}))
    message += [
        ("choices", f"layer, noise level and settings were chosen on: {chosen}"),
        ("probed on", f"{hardware}; {when}"),
    ]
    items = "".join(f"<dt>{escape(what)}</dt><dd>{escape(how)}</dd>" for what, how in message)
    return f"<section><h2>How it was measured</h2><dl>{items}</dl></section>"

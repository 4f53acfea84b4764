"""The page of a report, index.html: one file that contains everything it shows and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linear_probe.agreement import Agreement, agreement
from linear_probe.report.contents import TRIAL, Contents, Entry, chosen_on
from linear_probe.report.document import render_template
from linear_probe.report.figures import draw_selection, grid_figures, schedule_figure, selection_limits
from linear_probe.report.pictures import Album, albums
from linear_probe.report.rendering import FigureFiles, SavedFigure
from linear_probe.report.tables import checkpoints, columns, facts, hours, percent, seeds
from linear_probe.results import Result, describe_features, title

ROW_LABELS = ("clean", "noised", "denoised")  # of a picture of one noise level, from the top
SMOOTH = 240  # pixels; a picture that is less wide is enlarged without smoothing


@dataclass(frozen=True)
class Section:
    """The figures of one grid at one budget.

    Attributes:
        ranks: title of a protocol -> its rank correlation with the paper.
    """

    grid: str
    budget: str
    ranks: Mapping[str, Agreement]
    figures: Sequence[SavedFigure]


@dataclass(frozen=True)
class Card:
    """The pictures of one trial.

    Attributes:
        axes: its place in the grid, in words; empty where the name says it.
        heatmaps: accuracy by layer and noise level; None without several candidates.
    """

    name: str
    axes: str
    album: Album
    heatmaps: SavedFigure | None


def build_page(contents: Contents, root: Path) -> tuple[str, dict[str, bytes]]:
    """Render the page and its figures.

    Args:
        contents: the report.
        root: folder that the rows' pictures are relative to.

    Returns:
        The HTML, and {path relative to the page: content} of the figures' files.
    """
    files = FigureFiles()
    html = render_template(
        "page.html",
        title=contents.title,
        contents=contents,
        facts=facts(contents),
        seeds=sorted({s for e in contents.entries for s in seeds(e)}),
        costs=_costs(contents),
        sections=_sections(contents, files),
        schedules=files.save(schedule_figure(contents.schedules, files.used)) if contents.schedules else None,
        has_paper=any(row.paper is not None for row in contents.rows),
        columns=columns(contents),
        details=_details,
        TRIAL=TRIAL,
        cards=_cards(contents, root, files),
        SMOOTH=SMOOTH,
        ROW_LABELS=ROW_LABELS,
        method=_method(contents),
    )
    return html, files.contents


def axes_text(axes: Mapping[str, Any]) -> str:
    """Return a trial's place in its grid, in words."""
    return ", ".join(f"{name} {value}" for name, value in axes.items())


def _costs(contents: Contents) -> list[str]:
    """Return the cost of all trials, each checkpoint once: trials that read one network share its pretraining."""
    runs = {tuple(checkpoints(e)) or e.name: e.row for e in contents.entries if e.row}
    units = dict.fromkeys(row.unit for row in runs.values())
    return [f"{hours(sum(row.hours for row in runs.values() if row.unit == unit))} {unit}-hours" for unit in units]


def _sections(contents: Contents, files: FigureFiles) -> list[Section]:
    sections = []
    for (grid, budget), trials in contents.groups().items():
        rows = [e.row for e in trials if e.row]
        ranks = {title(p): a for p in contents.protocols if (a := agreement(rows, p))}
        figures = [files.save(figure) for figure in grid_figures(contents, trials, files.used)]
        sections.append(Section(grid, budget, ranks, figures))
    return sections


def _cards(contents: Contents, root: Path, files: FigureFiles) -> list[Card]:
    """Return a card for each trial that has pictures or heat maps."""
    cards = []
    trials = [e for e in contents.entries if e.row]
    limits = selection_limits([r for e in trials for r in e.results.values()])
    for e, album in zip(trials, albums(contents.rows, root), strict=True):
        drawing = draw_selection(e.name, list(e.results.values()), limits)
        saved = files.add(f"selection-{e.name}", drawing) if drawing else None
        axes = axes_text(e.row.axes) if e.row and len(e.row.axes) > 1 else ""  # one is the name itself
        if saved or album.denoised or album.others or album.missing:
            cards.append(Card(e.name, axes, album, saved))
    return cards


def _details(entry: Entry) -> Iterator[tuple[str, str, bool]]:
    """Yield the facts that an opened line of the table shows: label, text, and whether the text is code."""
    row = entry.row
    if row is not None:
        if row.axes:
            yield "axes", axes_text(row.axes), False
        yield "pretraining", row.command, True
        cost = f"{row.images:,} images, {hours(row.hours)} {row.unit}-hours, {row.commit}"
        yield "budget", f"{row.budget}: {cost}", False
        if row.paper is not None:
            yield "paper", f"{row.paper:.2f}: {row.paper_source}", False
    for command in dict.fromkeys(r.command for r in entry.results.values()):
        yield "probing", command, True
    for name, result in entry.results.items():
        yield title(name), _settings(result), False
    for checkpoint in checkpoints(entry):
        yield "checkpoint", checkpoint, True


def _settings(r: Result) -> str:
    chosen = {k: v for k, v in r.selected.items() if k not in ("among", "features", "by_seed")}
    setting = "".join(f", {k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in chosen.items())
    return (
        f"{percent(r)}; {describe_features(r)}, {r.dimensions} dimensions{setting}; "
        f"{r.selected_accuracy:.2f} on {chosen_on(r)}, where it was chosen; {r.hardware}; {r.date[:10]}; {r.commit}"
    )


def _method(contents: Contents) -> list[tuple[str, str]]:
    """Return what the columns are and how their numbers were measured."""
    about = [(c.head, c.about) for c in columns(contents) if c.about]
    hardware = ", ".join(sorted({r.hardware for r in contents.results}))
    dates = sorted(r.date[:10] for r in contents.results)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    chosen = ", ".join(sorted({chosen_on(r) for r in contents.results}))
    about.append(("choices", f"layer, noise level and settings were chosen on: {chosen}"))
    about.append(("probed on", f"{hardware}; {when}"))
    return about

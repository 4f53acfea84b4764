"""Plots of a grid: lines where an axis is a number, bars where the trials are steps or alternatives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from linear_probe.report.bars import Bar, bars
from linear_probe.report.columns import PAPER
from linear_probe.report.contents import Contents, Entry
from linear_probe.report.lines import Axis, Point, lines

COUNTERS = frozenset({"seed", "rung"})  # axes whose numbers only count: no distance between them means anything
FEWEST = 3  # points that make a line
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
OCTAVES = 8  # an axis that spans such a factor is drawn by doublings

Value = tuple[float, float | None]  # accuracy and its deviation


@dataclass(frozen=True)
class Measure:
    """The quantity that a plot shows of each entry, or None.

    Attributes:
        title: of the plot.
        tone: `ours` or `paper`.
        axis: what a horizontal axis is called, around its name.
        caption: below the plot, where its numbers are from if they are not ours.
    """

    title: str
    tone: str
    of: Callable[[Entry], Value | None]
    axis: str = "{}"
    caption: str = ""


@dataclass(frozen=True)
class Trend:
    """Cells along an axis.

    Attributes:
        x: the axis.
        series: name of a line -> its cells by rising x.
    """

    x: Axis
    series: Mapping[str, Sequence[tuple[float, Entry]]]


def figures(contents: Contents, trials: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """The plots of one grid, as SVG, and their captions: one for each protocol, and one of the paper's figures.

    Args:
        cells: of one grid and budget.
    """
    found = trend(trials)
    for measure in measures(contents, trials):
        known = [e for e in trials if measure.of(e) is not None]
        if not known:
            continue
        drawn = _lines(measure, found) if found else ""
        yield drawn or _bars(measure, trials, contents.beside), measure.caption


def measures(contents: Contents, trials: Sequence[Entry]) -> list[Measure]:
    """Each protocol's accuracy, and the paper's."""
    shared = contents.results[0]
    where = f"{shared.data}, {shared.split}"

    def ours(name: str) -> Measure:
        def of(entry: Entry) -> Value | None:
            r = entry.results.get(name)
            return None if r is None else (r.accuracy, r.deviation)

        return Measure(f"{name} ({where})", "ours", of)

    def paper(entry: Entry) -> Value | None:
        return None if entry.row is None or entry.row.paper is None else (entry.row.paper, None)

    sources = "; ".join(dict.fromkeys(e.row.paper_source for e in trials if e.row and paper(e)))
    return [*map(ours, contents.protocols), Measure(PAPER, "paper", paper, "{} of our cell", sources)]


def trend(trials: Sequence[Entry]) -> Trend | None:
    """The lines that the cells make, along the axis with the most values; None where no axis is a scale."""
    axes = [dict(e.row.axes) for e in trials if e.row]
    names = [n for n in dict.fromkeys(n for a in axes for n in a) if n not in COUNTERS]
    scales = {n: v for n in names if len(v := _numbers(axes, n)) >= FEWEST}
    if not scales:
        return None
    x = max(scales, key=lambda n: len(scales[n]))
    series = _series(trials, x, [n for n in names if n != x and not _follows(axes, n, x)])
    if len({(name, at) for name, found in series.items() for at, _ in found}) < sum(map(len, series.values())):
        return None  # two cells in one place: something else varies
    values = sorted(scales[x])
    log2 = values[0] > 0 and values[-1] >= OCTAVES * values[0]
    return Trend(Axis(x, log2, values if len(values) <= 9 else ()), series)


def _numbers(axes: Sequence[Mapping[str, Any]], name: str) -> set[float]:
    """The values of an axis if all are numbers; nothing otherwise."""
    values = [str(a[name]) for a in axes if name in a]
    return set(map(float, values)) if all(map(NUMBER.fullmatch, values)) else set()


def _follows(axes: Sequence[Mapping[str, Any]], name: str, x: str) -> bool:
    """Return whether x determines `name`, which then distinguishes no lines."""
    seen: dict[Any, set[str]] = {}
    for a in axes:
        if x in a:
            seen.setdefault(a[x], set()).add(str(a.get(name)))
    return all(len(values) == 1 for values in seen.values())


def _series(trials: Sequence[Entry], x: str, apart: Sequence[str]) -> dict[str, list[tuple[float, Entry]]]:
    found: dict[str, list[tuple[float, Entry]]] = {}
    for e in trials:
        if e.row and x in e.row.axes:
            name = " · ".join(str(e.row.axes[n]) for n in apart if n in e.row.axes) or e.row.grid
            found.setdefault(name, []).append((float(e.row.axes[x]), e))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in found.items()}


def _lines(measure: Measure, found: Trend) -> str:
    """The lines of one measure; empty where it has too few points for one."""
    series = {
        name: [Point(x, *value) for x, e in points if (value := measure.of(e)) is not None]
        for name, points in found.series.items()
    }
    if sum(map(len, series.values())) < FEWEST:
        return ""
    name, best = max(((n, p) for n, points in series.items() for p in points), key=lambda pair: pair[1].y)
    drawn = ", ".join(n for n, points in series.items() if points)
    about = (
        f"Accuracy in percent against {found.x.label}, a line each for {drawn}. "
        f"Highest: {name} at {found.x.label} = {best.x:g} with {best.y:.2f}."
    )
    x = replace(found.x, label=measure.axis.format(found.x.label))
    return lines(measure.title, about, series, x, "top-1 accuracy, %", marks=True)


def _bars(measure: Measure, trials: Sequence[Entry], beside: Sequence[Entry]) -> str:
    shown = [Bar(e.name, *(measure.of(e) or (None, None))) for e in trials]
    extra = [(e, value) for e in beside if (value := measure.of(e)) is not None]
    shown += [Bar(e.name, *value, kind="beside") for e, value in extra]
    message = "; ".join(f"{b.name} {b.value:.2f}" for b in shown if b.value is not None)
    return bars(
        measure.title,
        f"Top-1 accuracy in percent: {message}.",
        shown,
        measure.tone,
        max(len(e.name) for e in [*trials, *beside]),
    )


def schedules(curves: Mapping[str, Sequence[float]], most: int = 64) -> str:
    """Noise schedules: the share of signal over t / T.

    Args:
        curves: name -> values at t = 0..T-1; two of them at least.
        most: points to draw of each, evenly spread.
    """
    series = {name: _thinned(values, most) for name, values in curves.items()}
    about = f"Share of signal, gamma² / (gamma² + sigma²), from t = 0 to T for {', '.join(curves)}."
    x = Axis("t / T", values=(0, 0.25, 0.5, 0.75, 1))
    return lines("share of signal, gamma² / (gamma² + sigma²)", about, series, x, "share of signal", marks=False)


def _thinned(values: Sequence[float], most: int) -> list[Point]:
    last = len(values) - 1
    steps = min(most, last)
    return [Point(i / steps, values[round(i * last / steps)]) for i in range(steps + 1)]

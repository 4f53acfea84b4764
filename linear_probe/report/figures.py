"""Figures of a report: lines where an axis of the grid is a number, else bars; noise schedules; heat maps of trials."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from linear_probe.report.contents import PAPER, Contents, Entry, chosen_on
from linear_probe.report.heatmaps import HeatMap, draw_heatmaps
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.plotting import Bar, Drawing, describe_error_bars, draw_bars, error_lengths
from linear_probe.report.rendering import ReportFigure, file_name
from linear_probe.results import Result, panel, parse_feature_key, title

COUNTERS = frozenset({"seed", "rung"})  # axes whose numbers only count: no distance between them means anything
FEWEST = 3  # points that make a line
MOST = 64  # segments of a schedule's line
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
PAPER_NAME = "paper"  # of the measure with published accuracies
OCTAVES = 8  # an axis that spans such a factor is logarithmic

# accuracy in percent, its standard deviation over seeds, and its interval over images
Value = tuple[float, float | None, tuple[float, float] | None]
Limits = tuple[float, float]
NO_LIMITS: Mapping[str, Limits] = MappingProxyType({})


@dataclass(frozen=True)
class Measure:
    """An accuracy that a figure shows of each entry.

    Attributes:
        name: for its file.
        title: of the figure.
        color: role of the bars.
        of: the accuracy of an entry, or None.
        x_label: format of the horizontal axis' label.
        caption: below the figure: the source of numbers that are not ours.
    """

    name: str
    title: str
    color: str
    of: Callable[[Entry], Value | None]
    x_label: str = "{}"
    caption: str = ""


@dataclass(frozen=True)
class Trend:
    """Trials along an axis of the grid.

    Attributes:
        x: the axis.
        series: name of a line -> its trials by rising x.
    """

    x: XAxis
    series: Mapping[str, Sequence[tuple[float, Entry]]]


def grid_figures(contents: Contents, trials: Sequence[Entry], used: set[str]) -> list[ReportFigure]:
    """Draw the accuracies of one grid: a figure for each protocol, and one of the paper's numbers.

    Args:
        contents: the report.
        trials: of one grid and budget.
        used: names of files that are taken; those of the figures are added.
    """
    figures, lines = [], find_trend(trials)
    shown = [measure for measure in measures(contents, trials) if any(measure.of(e) for e in trials)]
    limits = _limits([m for m in shown if m.name != PAPER_NAME], [*trials, *contents.baselines])
    for measure in shown:
        shared = limits if measure.name != PAPER_NAME else None
        drawing = _draw_lines(measure, lines, contents.baselines, shared) if lines else None
        with_error_bars = trials if drawing else [*trials, *contents.baselines]
        drawing = drawing or _draw_bars(measure, trials, contents.baselines, shared)
        row = trials[0].row
        prefix = f"{row.grid}-{row.budget}-" if row else ""
        caption = _caption(measure, with_error_bars)
        figures.append(ReportFigure(file_name(prefix + measure.name, used), drawing, caption))
    return figures


def _limits(measures: Sequence[Measure], entries: Sequence[Entry]) -> Limits:
    """Return the lowest and the highest end of all values with their error bars."""
    values = [value for m in measures for e in entries if (value := m.of(e)) is not None]
    lengths = [error_lengths(*value) or (0.0, 0.0) for value in values]
    return (
        min(v[0] - below for v, (below, _) in zip(values, lengths, strict=True)),
        max(v[0] + above for v, (_, above) in zip(values, lengths, strict=True)),
    )


def _caption(measure: Measure, entries: Sequence[Entry]) -> str:
    """Return the source of numbers that are not ours, and what the error bars of entries are."""
    values = [value for e in entries if (value := measure.of(e)) is not None]
    bars = describe_error_bars((deviation, interval) for _, deviation, interval in values)
    return f"{measure.caption} {bars}".strip()


def measures(contents: Contents, trials: Sequence[Entry]) -> list[Measure]:
    """Return each protocol's accuracy, and the paper's."""
    shared = contents.results[0]
    where = f"{shared.data}, {shared.split}"

    def ours(protocol: str) -> Measure:
        def of(entry: Entry) -> Value | None:
            r = entry.results.get(protocol)
            return None if r is None else (r.accuracy, r.deviation, interval_of(r))

        return Measure(protocol, f"{title(protocol)} ({where})", "series-0", of)

    def paper(entry: Entry) -> Value | None:
        return None if entry.row is None or entry.row.paper is None else (entry.row.paper, None, None)

    sources = "; ".join(dict.fromkeys(e.row.paper_source for e in trials if e.row and paper(e)))
    return [*map(ours, contents.protocols), Measure(PAPER_NAME, PAPER, "paper", paper, "{} of our trial", sources)]


def find_trend(trials: Sequence[Entry]) -> Trend | None:
    """Return the lines that the trials make along the axis with the most values; None where no axis is a number."""
    axes = [dict(e.row.axes) for e in trials if e.row]
    names = [n for n in dict.fromkeys(n for a in axes for n in a) if n not in COUNTERS]
    numeric = {n: v for n in names if len(v := _numbers(axes, n)) >= FEWEST}
    if not numeric:
        return None
    x = max(numeric, key=lambda n: len(numeric[n]))
    series = _series(trials, x, [n for n in names if n != x and not _is_function_of(axes, n, x)])
    if len({(name, at) for name, points in series.items() for at, _ in points}) < sum(map(len, series.values())):
        return None  # two trials at one point: something else varies
    values = sorted(numeric[x])
    log2 = values[0] > 0 and values[-1] >= OCTAVES * values[0]
    return Trend(XAxis(x, log2, values if len(values) <= 9 else ()), series)


def _numbers(axes: Sequence[Mapping[str, Any]], name: str) -> set[float]:
    """Return the values of an axis if all are numbers; nothing otherwise."""
    values = [str(a[name]) for a in axes if name in a]
    return set(map(float, values)) if all(map(NUMBER.fullmatch, values)) else set()


def _is_function_of(axes: Sequence[Mapping[str, Any]], name: str, x: str) -> bool:
    """Return whether x determines `name`, which then distinguishes no lines."""
    seen: dict[Any, set[str]] = {}
    for a in axes:
        if x in a:
            seen.setdefault(a[x], set()).add(str(a.get(name)))
    return all(len(values) == 1 for values in seen.values())


def _series(trials: Sequence[Entry], x: str, others: Sequence[str]) -> dict[str, list[tuple[float, Entry]]]:
    series: dict[str, list[tuple[float, Entry]]] = {}
    for e in trials:
        if e.row and x in e.row.axes:
            name = " · ".join(str(e.row.axes[n]) for n in others if n in e.row.axes) or e.row.grid
            series.setdefault(name, []).append((float(e.row.axes[x]), e))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in series.items()}


def interval_of(result: Result) -> Limits | None:
    """Return the bootstrap interval of a result, or None."""
    return None if result.low is None or result.high is None else (result.low, result.high)


def _draw_lines(measure: Measure, trend: Trend, baselines: Sequence[Entry], limits: Limits | None) -> Drawing | None:
    """Draw one measure along the trend's axis, baselines as lines; None where it has too few points."""
    series = {
        name: [Point(x, *value) for x, e in points if (value := measure.of(e)) is not None]
        for name, points in trend.series.items()
    }
    if sum(map(len, series.values())) < FEWEST:
        return None
    references = {e.name: value[0] for e in baselines if (value := measure.of(e)) is not None}
    name, best = max(((n, p) for n, points in series.items() for p in points), key=lambda pair: pair[1].y)
    names = ", ".join(n for n, points in series.items() if points)
    description = (
        f"Accuracy in percent against {trend.x.label}, a line each for {names}. "
        f"Highest: {name} at {trend.x.label} = {best.x:g} with {best.y:.2f}."
    )
    description += "".join(f" {name}: {value:.2f}." for name, value in references.items())
    x = replace(trend.x, label=measure.x_label.format(trend.x.label))
    if limits is not None:
        margin = max(0.06 * (limits[1] - limits[0]), 0.5)
        limits = (limits[0] - margin, limits[1] + margin)
    y_label = "top-1 accuracy (%)"
    return draw_lines(measure.title, description, series, x, y_label, references=references, limits=limits)


def _draw_bars(measure: Measure, trials: Sequence[Entry], baselines: Sequence[Entry], limits: Limits | None) -> Drawing:
    bars = [
        Bar(e.name, value[0], value[1], interval=value[2]) if (value := measure.of(e)) else Bar(e.name, None)
        for e in trials
    ]
    measured = [(e, value) for e in baselines if (value := measure.of(e)) is not None]
    bars += [Bar(e.name, value[0], value[1], True, value[2]) for e, value in measured]
    values = "; ".join(f"{b.name} {b.value:.2f}" for b in bars if b.value is not None)
    longest = limits[1] if limits is not None else None
    description = f"Top-1 accuracy in percent: {values}."
    return draw_bars(measure.title, description, bars, measure.color, longest=longest)


def schedule_figure(schedules: Mapping[str, Sequence[float]], used: set[str]) -> ReportFigure:
    """Draw the signal fraction of noise schedules over t / T.

    Args:
        schedules: name -> values at t = 0..T-1; two of them at least.
        used: names of files that are taken; the figure's is added.
    """
    series = {name: list(_thinned(values)) for name, values in schedules.items()}
    description = f"Signal fraction, gamma² / (gamma² + sigma²), from t = 0 to T for {', '.join(schedules)}."
    x = XAxis("t / T", ticks=(0, 0.25, 0.5, 0.75, 1))
    drawing = draw_lines("Signal fraction", description, series, x, "γ² / (γ² + σ²)", markers=False)
    return ReportFigure(file_name("noise-schedules", used), drawing)


def _thinned(values: Sequence[float]) -> Iterator[Point]:
    last = len(values) - 1
    steps = min(MOST, last)
    yield from (Point(t / last, values[t]) for t in (round(i * last / steps) for i in range(steps + 1)))


def selection_limits(results: Sequence[Result]) -> dict[str, Limits]:
    """Return the lowest and highest accuracy of each protocol on the images of the choice, of all results together."""
    values: dict[str, list[float]] = {}
    for r in results:
        values.setdefault(r.protocol, []).extend(r.selected.get("among", {}).values())
    return {protocol: (min(of), max(of)) for protocol, of in values.items() if of}


def draw_selection(name: str, results: Sequence[Result], limits: Mapping[str, Limits] = NO_LIMITS) -> Drawing | None:
    """Draw the accuracy of each layer at each noise level on the images of the choice, a heat map for each protocol.

    The chosen layer and noise level are framed.

    Args:
        name: of the trial or encoder that was probed.
        results: of one encoder, one for each protocol.
        limits: protocol -> accuracies of the darkest and the lightest colour, for trials that are compared.

    Returns:
        None where no result had several candidates.
    """
    shown = [r for r in results if len(r.selected.get("among", {})) > 1]
    if not shown:
        return None
    maps, sentences = [], []
    for r in shown:
        rows, columns, values = panel(r)
        steps = parse_feature_key(r.selected["features"])[1] if "features" in r.selected else (r.t,)
        level = f"t={'+'.join(map(str, steps))} {r.input}"
        chosen = [i for i, column in enumerate(columns) if column in (level, f"{level} {r.pooling}")]
        place = (rows.index(str(r.layer)), chosen[0]) if chosen and str(r.layer) in rows else None
        maps.append(
            HeatMap(f"{title(r.protocol)}, % on {chosen_on(r)}", rows, columns, values, place, limits.get(r.protocol))
        )
        known = [v for row in values for v in row if v is not None]
        sentences.append(
            f"{title(r.protocol)}: {min(known):.1f} to {max(known):.1f} % on {chosen_on(r)}; "
            f"chosen: layer {r.layer}, t = {' + '.join(map(str, steps))}, {r.input}."
        )
    heading = f"{name}: accuracy by layer and noise level"
    return draw_heatmaps(heading, " ".join(sentences), maps, "noise level and input", "layer")

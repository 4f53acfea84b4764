"""Write the table and the figures of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldae.app.sweep.space import Dimension
from ldae.app.sweep.study import SweepStudy, state_name
from ldae.core.files import open_atomic, write_text
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.plotting import Bar, Drawing, draw_bars
from linear_probe.report.rendering import render
from linear_probe.results import markdown, title

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TABLE, LINES, FIGURES = "trials.md", "trials.jsonl", "figures"
TICKS = 12  # maximum of trials that have a tick each


def table(trials: Sequence[FrozenTrial], space: Sequence[Dimension], metric: str) -> str:
    """Return a Markdown table with a line for each trial: its values, online kNN and hold-out accuracy."""
    best = max((t.value for t in trials if t.value is not None and state_name(t) == "done"), default=None)
    rows = [["trial", *(d.key for d in space), "state", "online kNN, %", f"{title(metric)} on the hold-out, %"]]
    for trial in trials:
        online = trial.intermediate_values
        done = state_name(trial) == "done" and trial.value is not None
        accuracy = f"{trial.value:.2f}" if done else ""
        rows.append(
            [
                str(trial.number),
                *(_text(trial.params.get(d.key, "")) for d in space),
                state_name(trial),
                f"{online[max(online)]:.1f}" if online else "",
                f"**{accuracy}**" if done and trial.value == best else accuracy,
            ]
        )
    return markdown(rows)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_summary(out: Path, study: SweepStudy, metric: str, commands: Mapping[int, str]) -> str:
    """Write trials.md, trials.jsonl and, from two accuracies on, the figures; return the table.

    Args:
        out: folder of the sweep.
        study: its trials.
        metric: name of the accuracy.
        commands: {number of a trial: command of its pretraining}.
    """
    text = table(study.trials, study.space, metric)
    write_text(out / TABLE, text + "\n")
    lines = [
        {
            "trial": t.number,
            "state": state_name(t),
            "values": t.params,
            "accuracy": t.value if state_name(t) == "done" else None,
            "metric": metric,
            "split": "holdout",
            "online_knn": [t.intermediate_values[step] for step in sorted(t.intermediate_values)],
            **t.user_attrs,
            "command": commands.get(t.number),
        }
        for t in study.trials
    ]
    write_text(out / LINES, "".join(json.dumps(line) + "\n" for line in lines))
    if len({t.value for t in study.completed()}) > 1:
        for name, drawing in _drawings(study, metric):
            for suffix, content in render(drawing).items():
                path = out / FIGURES / f"{name}.{suffix}"
                path.parent.mkdir(exist_ok=True)
                with open_atomic(path) as f:
                    f.write(content)
    return text


def _drawings(study: SweepStudy, metric: str) -> list[tuple[str, Drawing]]:
    """Return the accuracies of the trials in their order, and the importances of several keys."""
    name = f"{title(metric)} on the hold-out (%)"
    in_order = sorted(study.completed(), key=lambda t: t.number)
    points = [Point(t.number, t.value) for t in in_order if t.value is not None]
    best = [Point(p.x, max(q.y for q in points if q.x <= p.x)) for p in points]
    series = {"best so far": best, "trial": points}
    axis = XAxis("trial", ticks=[p.x for p in points] if len(points) <= TICKS else ())
    history = draw_lines("Accuracy of the trials", f"{name}.", series, axis, name, unconnected=["trial"])
    drawings = [("history", history)]
    if len(study.space) > 1:
        from optuna.importance import get_param_importances

        shares = get_param_importances(study.study, evaluator=optuna_evaluator(study.seed))
        bars = [Bar(key, 100 * share) for key, share in shares.items()]
        heading, label = "Share of the variance that a key explains", "share of the variance (%)"
        text = f"{name}, by functional ANOVA over random forests."
        drawings.append(("importances", draw_bars(heading, text, bars, "series-0", label)))
    return drawings


def optuna_evaluator(seed: int) -> Any:
    """Return functional ANOVA over random forests (Hutter et al., 2014), seeded: equal trials give equal figures."""
    from optuna.importance import FanovaImportanceEvaluator

    return FanovaImportanceEvaluator(seed=seed % 2**32)

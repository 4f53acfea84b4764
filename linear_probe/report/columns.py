"""The columns of the table, the same for every format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from linear_probe.report.contents import Contents, Entry
from linear_probe.results import Result, title

PAPER = "paper: ImageNet, ViT-L scale"


def _nothing(entry: Entry) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: its heading.
        text: of an entry; empty where there is nothing.
        value: the number that sorts it; None where `text` does.
        tip: more of the same, for those who point at it.
        about: what the column is.
        mark: `paper` for what others measured, `ours` for what a protocol found, `plain` otherwise.
    """

    head: str
    text: Callable[[Entry], str]
    value: Callable[[Entry], float | None] | None = None
    tip: Callable[[Entry], str] = _nothing
    about: str = ""
    mark: str = "plain"


def columns(contents: Contents) -> list[Column]:
    """All columns but the name's that hold something."""
    protocols = [protocol_column(name, source) for name, source in contents.protocols.items()]
    found = [*_grids(contents), _paper(), *protocols, _seeds(), _images(), *_hours(contents), _commit(), _checkpoint()]
    return [c for c in found if any(c.text(entry) for entry in contents.entries)]


def percent(result: Result | None) -> str:
    """Accuracy in percent, two digits, with its deviation over seeds if there are several."""
    if result is None:
        return ""
    return f"{result.accuracy:.2f}" + ("" if result.deviation is None else f" ± {result.deviation:.2f}")


def protocol_column(name: str, source: str) -> Column:
    """Return the column of the accuracies of one protocol."""

    def tip(entry: Entry) -> str:
        r = entry.results.get(name)
        return "" if r is None else f"layer {r.layer}, t = {r.t}, {r.input}, {r.pooling}; chosen on {chosen_on(r)}"

    def value(entry: Entry) -> float | None:
        return entry.results[name].accuracy if name in entry.results else None

    return Column(title(name), lambda e: percent(e.results.get(name)), value, tip, source, "ours")


def hours(found: float) -> str:
    """Two digits after the point; of less than a tenth, two digits that are not zero."""
    return f"{found:.2f}" if found >= 0.1 or found == 0 else f"{found:.2g}"


def chosen_on(result: Result) -> str:
    """Return the images that layer, noise level and settings were selected on, in words."""
    return "the hold-out" if result.selected_on == "holdout" else result.selected_on


def seeds(entry: Entry) -> list[int]:
    """Of all its results."""
    return sorted({s for r in entry.results.values() for s in (r.seeds or [r.seed])})


def checkpoints(entry: Entry) -> list[str]:
    """Hashes of what was scored."""
    return [c for c in dict.fromkeys(r.checkpoint for r in entry.results.values()) if c != "none"]


def _grids(contents: Contents) -> list[Column]:
    groups = contents.groups()
    grid = Column("grid", lambda e: e.row.grid if e.row else "")
    budget = Column("budget", lambda e: e.row.budget if e.row else "", about="how long pretraining is")
    return [c for c, i in ((grid, 0), (budget, 1)) if len({key[i] for key in groups}) > 1]


def _paper() -> Column:
    def value(entry: Entry) -> float | None:
        return entry.row.paper if entry.row else None

    def text(entry: Entry) -> str:
        found = value(entry)
        return "" if found is None else f"{found:.2f}"

    about = "printed in the paper, for other data and a larger network: compare orders, not values"
    return Column(PAPER, text, value, lambda e: e.row.paper_source if e.row else "", about, "paper")


def _seeds() -> Column:
    return Column(
        "seeds", lambda e: ", ".join(map(str, seeds(e))), about="of the run, or of the repetitions behind a mean"
    )


def _images() -> Column:
    def text(entry: Entry) -> str:
        return f"{entry.row.images:,}" if entry.row else ""

    return Column(
        "images seen", text, lambda e: e.row.images if e.row else None, about="in pretraining, with repetitions"
    )


def _hours(contents: Contents) -> list[Column]:
    """A column for each unit: core-hours and GPU-hours are no common currency."""
    return [_hours_of(unit) for unit in dict.fromkeys(row.unit for row in contents.rows)]


def _hours_of(unit: str) -> Column:
    def value(entry: Entry) -> float | None:
        return entry.row.hours if entry.row and entry.row.unit == unit else None

    def text(entry: Entry) -> str:
        found = value(entry)
        return "" if found is None else hours(found)

    return Column(f"{unit}-hours", text, value, about="pretraining and the tokenizer's training")


def _commit() -> Column:
    def whole(entry: Entry) -> str:
        result = entry.any_result
        return entry.row.commit if entry.row else result.commit if result else ""

    return Column("commit", lambda e: whole(e)[:7], tip=whole)


def _checkpoint() -> Column:
    def short(entry: Entry) -> str:
        return ", ".join(c[:8] for c in checkpoints(entry))

    return Column("checkpoint", short, tip=lambda e: ", ".join(checkpoints(e)), about="SHA-256 of its manifest")

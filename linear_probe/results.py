"""The result line, and tables of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEAL = "sha256"  # key of a line: the hash of all its other keys


@dataclass(frozen=True)
class Result:
    """One accuracy and all that is needed to believe it.

    Attributes:
        encoder: what was scored, in words.
        protocol: its name; `protocol_source` says what that is.
        accuracy: on `split`, percent.
        split, images: what it was measured on.
        selected: what was chosen, e.g. {"k": 20}, and `among` which cells, with their accuracies.
        selected_on: which split the choice was made on; its accuracy there is `selected_accuracy`.
        layer, t, input, pooling: where the features were read.
        dimensions: D.
        checkpoint: SHA-256 of the checkpoint's manifest, or `none`.
        step: of the checkpoint.
        seed: of the run.
        data, data_fingerprint: the data set.
        config: hash of the run's config.
        commit, command, hardware, date: of the measurement.
        labels: how many labelled images the probe was fitted on: `all`, a share (`1%`), or `N per class`.
        seeds: of the repetitions that `accuracy` is the mean of; empty for one measurement with `seed`.
        deviation: sample standard deviation over `seeds`, None for one.
        warnings: what makes the accuracy doubtful, in sentences (linear_probe.checks).
    """

    encoder: str
    protocol: str
    protocol_source: str
    accuracy: float
    split: str
    images: int
    selected: dict[str, Any]
    selected_on: str
    selected_accuracy: float
    layer: int
    t: int
    input: str
    pooling: str
    dimensions: int
    checkpoint: str
    step: int
    seed: int
    data: str
    data_fingerprint: str
    config: str
    commit: str
    command: str
    hardware: str
    date: str
    labels: str = "all"
    seeds: Sequence[int] = ()
    deviation: float | None = None
    warnings: Sequence[str] = ()

    def line(self) -> str:
        """One line of JSON."""
        return sealed(asdict(self))


def sealed(value: Mapping[str, Any]) -> str:
    """Return a JSON object in one line, with the SHA-256 of its content under the key `sha256`."""
    whole = json.loads(json.dumps(dict(value)))  # as it will be read
    return json.dumps({**whole, SEAL: _content_hash(whole)})


def unsealed(line: str) -> dict[str, Any]:
    """Return the JSON object of a line without its `sha256`.

    Raises:
        ValueError: the line is no JSON object, or not the content that was written. A line without `sha256` is taken
            as it is.
    """
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line holds no JSON object")
    known = value.pop(SEAL, None)
    if known is not None and known != _content_hash(value):
        name = value.get("encoder") or value.get("trial")
        raise ValueError(f"the line of {name} is damaged: its content does not have the SHA-256 that it names")
    return value


def _content_hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Replaces `path` by the result lines, in one step."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(r.line() + "\n" for r in results))
    os.replace(temporary, path)


def read_results(path: Path) -> list[Result]:
    """The result lines in `path`.

    Raises:
        ValueError: a line is damaged.
    """
    return [Result(**unsealed(line)) for line in path.read_text().splitlines()]


TITLES = {
    "lbfgs": "linear",
    "knn": "kNN",
    "knn_whitened": "kNN whitened",
    "paper": "linear, paper",
    "mae": "linear, MAE",
    "dinov2": "linear, DINOv2",
    "ddae": "linear, DDAE",
    "finetune": "fine-tuned",
}


def title(protocol: str) -> str:
    """Return the name of a protocol for tables; result lines keep its id."""
    plain = protocol.removesuffix("_augmented")
    return TITLES.get(plain, plain) + ", augmented" * (plain != protocol)


def table(results: Sequence[Result], chance: float | None = None) -> str:
    """Return a table of accuracies in percent, encoders as rows and protocols as columns, in GitHub's syntax.

    A protocol is one column, so protocols are never mixed in one.

    Args:
        chance: accuracy of the most frequent class, percent; a last row shows it.
    """
    encoders = list(dict.fromkeys(r.encoder for r in results))
    protocols = list(dict.fromkeys(r.protocol for r in results))
    found = {(r.encoder, r.protocol): r for r in results}
    rows = [["encoder", *map(title, protocols)]]
    for encoder in encoders:
        cells = [found.get((encoder, protocol)) for protocol in protocols]
        rows.append([encoder, *("" if c is None else percent(c) for c in cells)])
    if chance is not None:
        rows.append(["chance (the most frequent class)", *[f"{chance:.2f}"] * len(protocols)])
    return markdown(rows)


def place_of_choice(result: Result) -> str:
    """Return the images that a setting was selected on, in words."""
    return "hold-out" if result.selected_on == "holdout" else result.selected_on


def percent(result: Result) -> str:
    """The accuracy as tables have it: 54.83, of several seeds 54.8 ± 0.3."""
    if result.deviation is None:
        return f"{result.accuracy:.2f}"
    return f"{result.accuracy:.1f} ± {result.deviation:.1f}"


def grid(results: Sequence[Result]) -> str:
    """Return the accuracies in percent on the selection split: encoders and layers as rows, levels as columns.

    Args:
        results: of one protocol.
    """
    found = {r.encoder: _placed(r) for r in results}
    columns = sorted({column for cells in found.values() for _, column in cells})
    several = len({pooling for _, _, pooling in columns}) > 1
    rows = [["encoder", "layer", *(_heading(column, several) for column in columns)]]
    for encoder, cells in found.items():
        for layer in sorted({layer for layer, _ in cells}):
            values = [cells.get((layer, column)) for column in columns]
            rows.append([encoder, str(layer), *("" if v is None else f"{v:.1f}" for v in values)])
    return markdown(rows)


def panel(result: Result) -> tuple[list[str], list[str], list[list[float | None]]]:
    """The same of one encoder, for a picture: layers, columns, and a row of values for each layer."""
    cells = _placed(result)
    layers, columns = sorted({layer for layer, _ in cells}), sorted({column for _, column in cells})
    headings = [_heading(column, several=len({pooling for _, _, pooling in columns}) > 1) for column in columns]
    return (
        [str(layer) for layer in layers],
        headings,
        [[cells.get((layer, column)) for column in columns] for layer in layers],
    )


Column = tuple[int, str, str]  # t, input, pooling


def _placed(result: Result) -> dict[tuple[int, Column], float]:
    """(layer, column) -> what it had where the choice was made."""
    found = {}
    for cell, value in result.selected["among"].items():
        layer, t, kind = place(cell)
        found[layer, (t, kind, cell.split("-", 3)[3])] = value
    return found


def _heading(column: Column, several: bool) -> str:
    t, kind, pooling = column
    return f"t={t} {kind} {pooling}" if several else f"t={t} {kind}"


def place(cell: str) -> tuple[int, int, str]:
    """(layer, t, input) of a cell's name, layerL-tT-INPUT-POOLING."""
    layer, t, kind, _ = cell.split("-", 3)
    return int(layer.removeprefix("layer")), int(t.removeprefix("t")), kind


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's syntax, columns padded; the first row is the head, all but the first column right-aligned."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def text(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([text(rows[0]), rule, *map(text, rows[1:])])

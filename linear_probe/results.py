"""Read and write result lines, and format tables of them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FRACTIONS = 2**16 - 1  # of one, in packed values
SEAL = "sha256"  # key of a line with the hash of all other keys


@dataclass(frozen=True)
class Result:
    """Accuracy of an encoder under a protocol, or another measure of it, with its provenance.

    Attributes:
        encoder: name of the encoder.
        protocol: name of the protocol.
        protocol_source: the paper of the protocol and every deviation from it.
        accuracy: top-1 accuracy on `split` in percent, or what `measure` says.
        split: split that was scored.
        images: number of scored images.
        selected: selected setting, e.g. {"k": 20}, with the selected feature key as `features` and the candidates as
            `among`, {feature key: accuracy in percent}.
        selected_on: images of the selection: `holdout`, or the cross-validation.
        selected_accuracy: accuracy in percent on the images of the selection.
        layer, t, input, pooling: feature key of the features; of combined steps the first, with how they are combined
            after the pooling, e.g. `mean-concat`.
        dimensions: dimension D of the features.
        checkpoint: SHA-256 of the checkpoint's manifest, or `none`.
        step: training step of the checkpoint.
        seed: seed of the run.
        data, data_fingerprint: name and fingerprint of the data set.
        config: hash of the run's config.
        commit, command, hardware, date: provenance of the measurement.
        labels: number of labels: `all`, a percentage such as `1%`, or `N per class`.
        seeds: seeds of the repetitions that `accuracy` is the mean of; empty for one measurement with `seed`.
        deviation: sample standard deviation over `seeds`; None for one measurement.
        warnings: sentences on doubts about the accuracy (linear_probe.checks).
        correct: which images were classified correctly under each seed (`pack_correct`), for differences between
            encoders; empty where they are not known.
        geometry: {measure: value} of the same features without labels (linear_probe.geometry); empty unless measured.
        low, high: bootstrap interval of the accuracy over the images (linear_probe.statistics), percent; None likewise.
        measure: what `accuracy` is: `accuracy`, `mAP`, `AUROC`, `accuracy under corruption`; higher is better.
        values: the images' values of a measure that has others than 0 and 1 (`pack_values`), means over seeds and
            corruptions; empty where `correct` has them.
        further: {name: percent}, other measures of the same images, means over the seeds.
        outliers: name of the other data set of an AUROC.
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
    correct: str = ""
    low: float | None = None
    high: float | None = None
    measure: str = "accuracy"
    values: str = ""
    further: dict[str, float] = field(default_factory=dict)
    outliers: str = ""
    geometry: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """Return whether the values of the images are known."""
        return bool(self.correct or self.values)

    def per_image(self) -> NDArray[np.float64]:
        """Return the value of each image in [0, 1], whose mean is the measure: (images,).

        Of accuracies it is the fraction of seeds under which an image was classified correctly.

        Raises:
            ValueError: the line does not have them.
        """
        if self.values:
            return unpack_values(self.values, self.images)
        if not self.correct:
            raise ValueError(f"the line of {self.encoder} does not say which images were classified correctly")
        return unpack_correct(self.correct, max(1, len(self.seeds)), self.images).mean(0)

    def line(self) -> str:
        """Return the result as a line of JSON with its hash."""
        return sealed(asdict(self))


def pack_correct(correct: ArrayLike) -> str:
    """Return booleans (seeds, images) as text: base64 of their bits, row by row."""
    return base64.b64encode(np.packbits(np.asarray(correct, dtype=bool)).tobytes()).decode()


def unpack_correct(text: str, seeds: int, images: int) -> NDArray[np.bool_]:
    """Return the booleans (seeds, images) that `pack_correct` wrote.

    Raises:
        ValueError: the text holds another number of them.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-seeds * images // 8):
        raise ValueError(f"{len(packed)} bytes are not the {images} images of {seeds} seeds")
    return np.unpackbits(packed, count=seeds * images).astype(bool).reshape(seeds, images)


def pack_values(values: ArrayLike) -> str:
    """Return numbers in [0, 1], (images,), as text: base64 of 16-bit fractions."""
    fractions = np.round(np.asarray(values, dtype=np.float64) * FRACTIONS).astype("<u2")
    return base64.b64encode(fractions.tobytes()).decode()


def unpack_values(text: str, images: int) -> NDArray[np.float64]:
    """Return the numbers (images,) that `pack_values` wrote, to 1e-5.

    Raises:
        ValueError: the text holds another number of them.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u2")
    if len(packed) != images:
        raise ValueError(f"{len(packed)} values are not those of {images} images")
    return packed / FRACTIONS


def sealed(value: Mapping[str, Any]) -> str:
    """Return a JSON object in one line, with the SHA-256 of its content under the key `sha256`."""
    whole = json.loads(json.dumps(dict(value)))  # as JSON reads it
    return json.dumps({**whole, SEAL: _content_hash(whole)})


def unsealed(line: str) -> dict[str, Any]:
    """Return the JSON object of a line without its `sha256`.

    Raises:
        ValueError: the line is no JSON object, or its content does not have its hash. A line without `sha256` is not
            checked.
    """
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line holds no JSON object")
    expected = value.pop(SEAL, None)
    if expected is not None and expected != _content_hash(value):
        name = value.get("encoder") or value.get("trial")
        raise ValueError(f"the line of {name} is damaged: its content does not have the SHA-256 that it names")
    return value


def _content_hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write a file of result lines atomically."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(r.line() + "\n" for r in results))
    os.replace(temporary, path)


def read_results(path: Path) -> list[Result]:
    """Read a file of result lines.

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
    "dense": "segmentation IoU",
    "retrieval": "retrieval mAP",
    "ood_knn": "outliers kNN AUROC",
    "ood_energy": "outliers energy AUROC",
}


def title(protocol: str) -> str:
    """Return the name of a protocol in tables."""
    plain = protocol.removesuffix("_augmented")
    return TITLES.get(plain, plain) + ", augmented" * (plain != protocol)


def table(results: Sequence[Result], chance: float | None = None) -> str:
    """Return a table of accuracies in percent, encoders as rows and protocols as columns, in GitHub's syntax.

    Each protocol has a column of its own.

    Args:
        results: results of encoders under protocols.
        chance: accuracy in percent of always predicting the most frequent class, for a last row; None for no such row.
    """
    encoders = list(dict.fromkeys(r.encoder for r in results))
    protocols = list(dict.fromkeys(r.protocol for r in results))
    results_by_key = {(r.encoder, r.protocol): r for r in results}
    rows = [["encoder", *map(title, protocols)]]
    for encoder in encoders:
        accuracies = [results_by_key.get((encoder, protocol)) for protocol in protocols]
        rows.append([encoder, *("" if r is None else percent(r) for r in accuracies)])
    if chance is not None:
        measures = {r.protocol: r.measure for r in results}
        texts = [f"{chance:.2f}" if measures[protocol].startswith("accuracy") else "" for protocol in protocols]
        rows.append(["chance (the most frequent class)", *texts])
    return markdown(rows)


def further_table(results: Sequence[Result]) -> str:
    """Return a table of the further measures in percent, encoders as rows; empty where there are none."""
    columns = list(dict.fromkeys((r.protocol, name) for r in results for name in r.further))
    measures = {r.protocol: r.measure for r in results}
    names = [title(protocol).removesuffix(f" {measures[protocol]}") for protocol, _ in columns]
    rows = [["encoder", *(f"{of}: {name}" for of, (_, name) in zip(names, columns, strict=True))]]
    for encoder in dict.fromkeys(r.encoder for r in results):
        values = {(r.protocol, name): v for r in results if r.encoder == encoder for name, v in r.further.items()}
        rows.append([encoder, *(f"{values[column]:.2f}" if column in values else "" for column in columns)])
    return markdown(rows) if columns else ""


def place_of_choice(result: Result) -> str:
    """Return the name of the images that a setting was selected on."""
    return "hold-out" if result.selected_on == "holdout" else result.selected_on


def percent(result: Result) -> str:
    """Format an accuracy: `54.83`, or `54.8 ± 0.3` for several seeds."""
    if result.deviation is None:
        return f"{result.accuracy:.2f}"
    return f"{result.accuracy:.1f} ± {result.deviation:.1f}"


def grid(results: Sequence[Result]) -> str:
    """Return a table of accuracies in percent on the images of the selection: rows are layers, columns noise levels.

    Args:
        results: results of one protocol.
    """
    tables = {r.encoder: _accuracies(r) for r in results}
    columns = sorted({column for accuracies in tables.values() for _, column in accuracies})
    several = len({pooling for _, _, pooling in columns}) > 1
    rows = [["encoder", "layer", *(_heading(column, several) for column in columns)]]
    for encoder, accuracies in tables.items():
        for layer in sorted({layer for layer, _ in accuracies}):
            values = [accuracies.get((layer, column)) for column in columns]
            rows.append([encoder, str(layer), *("" if v is None else f"{v:.1f}" for v in values)])
    return markdown(rows)


def panel(result: Result) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Return layers, column titles, and accuracies in percent (a row for each layer) of one result, for a heat map."""
    accuracies = _accuracies(result)
    layers, columns = sorted({layer for layer, _ in accuracies}), sorted({column for _, column in accuracies})
    headings = [_heading(column, several=len({pooling for _, _, pooling in columns}) > 1) for column in columns]
    return (
        [str(layer) for layer in layers],
        headings,
        [[accuracies.get((layer, column)) for column in columns] for layer in layers],
    )


Column = tuple[tuple[int, ...], str, str]  # steps, input, pooling


def _accuracies(result: Result) -> dict[tuple[int, Column], float]:
    """Return {(layer, column): accuracy in percent on the images of the selection}."""
    accuracies = {}
    for feature_key, value in result.selected["among"].items():
        layer, steps, view, pooling = parse_feature_key(feature_key)
        accuracies[layer, (steps, view, pooling)] = value
    return accuracies


def _heading(column: Column, several: bool) -> str:
    steps, view, pooling = column
    heading = f"t={'+'.join(map(str, steps))} {view}"
    return f"{heading} {pooling}" if several else heading


def parse_feature_key(feature_key: str) -> tuple[int, tuple[int, ...], str, str]:
    """Return (layer, steps, input, pooling) of a feature key written as layerL-tT[+T...]-INPUT-POOLING[-COMBINE]."""
    layer, steps, view, pooling = feature_key.split("-", 3)
    return int(layer.removeprefix("layer")), tuple(map(int, steps.removeprefix("t").split("+"))), view, pooling


def describe_features(result: Result) -> str:
    """Return the selected features in words: `layer 4, t = 10, clean, mean`; combined steps are joined by +."""
    steps = f"{result.t}"
    if "features" in result.selected:
        steps = " + ".join(map(str, parse_feature_key(result.selected["features"])[1]))
    return f"layer {result.layer}, t = {steps}, {result.input}, {result.pooling}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded columns.

    Args:
        rows: the header, then the rows, all of the same length; columns after the first are right-aligned.
    """
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]

    def text(row: Sequence[str]) -> str:
        padded = [s.ljust(w) if i == 0 else s.rjust(w) for i, (s, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([text(rows[0]), rule, *map(text, rows[1:])])

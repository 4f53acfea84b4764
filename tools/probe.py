"""Scores a pretrained encoder with frozen features: linear probes and nearest neighbours, beside honest floors.

    python tools/probe.py run=RUN
    python tools/probe.py run=RUN protocols=[lbfgs,knn,paper,mae,dinov2] layers=[2,4,6] t=[10,40]
    python tools/probe.py run=RUN split=holdout floors=false      # while settings are still being chosen

Layer, noise level and hyper-parameters are chosen on the hold-out; the test split is read once, for what was
chosen. Prints a table and writes RUN/probe/results.jsonl, a line for every figure with all that was chosen and
what each layer had on the hold-out.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from _cli import compose, resolved, run_tool
from _scores import others_of, tables
from _session import Runtime, Session, commit, own_settings, session_of
from torch import Tensor

from ldae.data.images import ImageSet, Splits
from ldae.data.loader import in_order
from ldae.engine.runtime import describe_hardware, pick_device
from ldae.errors import ConfigError
from ldae.export import Encoder, Run, load_run
from ldae.files import json_hash
from ldae.parts import Count, Natural, conform
from linear_probe.features import Bank, Cell, Encode, Features, extract
from linear_probe.floors import PIXELS, raw_pixels, whole_image_pca
from linear_probe.protocols import PROTOCOLS, Choice, Protocol, joined
from linear_probe.results import Result, write_results

PCA_DIMENSIONS = (64, 128, 256)


@dataclass(frozen=True)
class ProbeSettings:
    """What is probed.

    Attributes:
        run: folder of a pretraining run.
        step: which checkpoint; the newest if None.
        weights: the average of the weights or the last ones.
        protocols: names of linear_probe.protocols.
        layers: which are read; from the middle of the encoder to the middle of the decoder if None.
        t: steps of the noise level that the network is told; the usual one if None.
        inputs: `clean`, `noised` or both.
        split: `test`, or `holdout` to leave the test split unread.
        floors: whether raw pixels, PCA and the untrained network join the table.
        beside: results of other runs, files that this tool wrote, to join the tables.
        out: folder for results and features; RUN/probe if None.
        seed: of heads and noise.
        batch: images of a forward pass.
        precision: of the network's matrix products.
    """

    run: str
    step: Natural | None
    weights: Literal["ema", "model"]
    protocols: list[str]
    layers: list[Count] | None
    t: list[Natural] | None
    inputs: list[Literal["clean", "noised"]]
    split: Literal["test", "holdout"]
    floors: bool
    beside: list[str]
    out: str | None
    seed: Natural
    batch: Count
    precision: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        for name in self.protocols:
            conform("protocols", name, Literal[tuple(PROTOCOLS)])
        for key in ("protocols", "t", "inputs"):
            if getattr(self, key) == []:
                raise ConfigError(key, getattr(self, key), "must name at least one")


@dataclass
class Subject:
    """Something to score: where its features come from.

    Attributes:
        name: as in the table.
        key: tells its features from others'.
        cells: columns among which a protocol chooses.
        features: (split, cell) -> features.
        skip: protocols that are left out for it.
    """

    name: str
    key: str
    cells: Sequence[Cell]
    features: Callable[[str, Cell], Features]
    checkpoint: str = "none"
    step: int = 0
    skip: Sequence[str] = field(default=())


class Probing:
    """One call of the tool.

    Args:
        settings: what is probed.
        run: the pretraining run, loaded.
        session: machine and data, by the run's config.
        out: folder for results and features.
    """

    def __init__(self, settings: ProbeSettings, run: Run, session: Session, out: Path):
        self.settings, self.run, self.session, self.out = settings, run, session, out
        self.splits: Splits = session.splits()
        self.classes = len(self.splits.classes)
        self.banks: dict[tuple[str, str], Bank] = {}

    def subjects(self) -> Iterator[Subject]:
        """The trained encoder first, then the floors."""
        yield self._network(self.run.name, self.run)
        if self.settings.floors:
            untrained = load_run(Path(self.settings.run), self.settings.step, "untrained", self.session.device)
            yield self._network("the same network, untrained", untrained)
            pixels = Subject("raw pixels", "pixels", [PIXELS], self._extracted("pixels", raw_pixels, [PIXELS]))
            pixels.skip = ["knn_whitened"]  # that is the row below
            yield pixels
            yield self._pca(pixels)

    def _network(self, name: str, run: Run) -> Subject:
        trained = run is self.run
        key = f"{run.checkpoint.hash[:16] if trained else 'untrained'}-{self.settings.weights if trained else ''}"
        encoder = Encoder(run.objective, precision=self.settings.precision, seed=self.settings.seed)
        cells = list(self._cells(encoder))
        features = self._extracted(key, many_cells(encoder, cells), cells)
        return Subject(
            name, key, cells, features, run.checkpoint.hash if trained else "none", run.checkpoint.step * trained
        )

    def _cells(self, encoder: Encoder) -> Iterator[Cell]:
        network = encoder.network
        half = network.encoder_layer
        layers = self.settings.layers or range((half + 1) // 2, (half + len(network.layers)) // 2 + 1)
        for layer in layers:
            for t in self.settings.t or [encoder.t]:
                for kind in self.settings.inputs:
                    Encoder(encoder.objective, layer, t, kind == "noised")  # raises if it cannot be read so
                    yield Cell(layer, t, kind, "mean")

    def _pca(self, pixels: Subject) -> Subject:
        cells = [Cell(pooling=f"pca{n}") for n in PCA_DIMENSIONS if n < 3 * self.splits.train.size**2]
        maps: dict[Cell, Callable[[Tensor], Tensor]] = {}

        def features(split: str, cell: Cell) -> Features:
            if cell not in maps:
                maps[cell] = whole_image_pca(pixels.features("train", PIXELS), int(cell.pooling[3:]))
            found = pixels.features(split, PIXELS)
            return Features(maps[cell](found.x), found.y)

        return Subject("whole-image PCA", "pca", cells, features)

    def _extracted(self, key: str, encode: Encode, cells: Sequence[Cell]) -> Callable[[str, Cell], Features]:
        """Features read on demand: train and hold-out for all cells at once, test for one cell alone."""

        def features(split: str, cell: Cell) -> Features:
            wanted = [cell] if split == "test" else cells
            name = json_hash([key, self.splits.fingerprint, split, [str(c) for c in wanted], self.settings.seed])[:20]
            if (key, name) not in self.banks:
                images: ImageSet = getattr(self.splits, split)
                folder = self.out / "features" / f"{key}-{split}-{name}"
                self.banks[key, name] = extract(encode, wanted, self._batches(images), len(images), folder)
            return self.banks[key, name][cell]

        return features

    def _batches(self, images: ImageSet) -> Iterator[Any]:
        session = self.session
        workers = session.config["data"]["workers"]
        return in_order(images, self.settings.batch, session.world.device, workers, session.stop.poll)

    def score(self, subject: Subject, protocol: Protocol) -> Result:
        """One figure: choices on the hold-out, then one fit on train and hold-out and one look at the test split."""
        seed = self.settings.seed
        found: list[tuple[Cell, Choice]] = []
        for cell in subject.cells:
            self.session.stop.poll()
            train, holdout = (subject.features(split, cell) for split in ("train", "holdout"))
            found.append((cell, protocol.select(train, holdout, self.classes, seed)))
        cell, choice = max(found, key=lambda pair: pair[1].accuracy)
        asked = subject.features(self.settings.split, cell)
        percent = choice.accuracy
        if self.settings.split == "test":
            development = joined(subject.features("train", cell), subject.features("holdout", cell))
            percent = protocol.score(choice.setting, development, asked, self.classes, seed)
        among = {str(cell): round(choice.accuracy, 2) for cell, choice in found}
        return self._result(subject, protocol, cell, choice, among, percent, asked)

    def _result(
        self,
        subject: Subject,
        protocol: Protocol,
        cell: Cell,
        choice: Choice,
        among: Mapping[str, float],
        percent: float,
        asked: Features,
    ) -> Result:
        return Result(
            encoder=subject.name,
            protocol=protocol.name,
            protocol_source=protocol.source,
            accuracy=percent,
            split=self.settings.split,
            images=len(asked),
            selected={**choice.setting, "cell": str(cell), "among": among},
            selected_on="holdout",
            selected_accuracy=choice.accuracy,
            layer=cell.layer,
            t=cell.t,
            input=cell.input,
            pooling=cell.pooling,
            dimensions=asked.x.shape[1],
            checkpoint=subject.checkpoint,
            step=subject.step,
            seed=self.run.config["seed"],
            data=str(self.run.config["data"]["part"]).rsplit(".", 1)[-1],
            data_fingerprint=self.splits.fingerprint,
            config=json_hash(self.run.config),
            commit=commit(),
            command=shlex.join(["python", *sys.argv]),
            hardware=describe_hardware(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def many_cells(encoder: Encoder, cells: Sequence[Cell]) -> Encode:
    """One encoder for all its cells: a pass over the images for each (t, input), all layers in it."""

    def encode(images: Tensor) -> Mapping[Cell, Tensor]:
        found: dict[Cell, Tensor] = {}
        for t, kind in sorted({(c.t, c.input) for c in cells}):
            own = [c for c in cells if (c.t, c.input) == (t, kind)]
            encoder.t, encoder.noised = t, kind == "noised"
            tokens = encoder.tokens(images, [c.layer for c in own])
            found |= {c: tokens[c.layer].mean(1) for c in own}
        return found

    return encode


def main(words: Sequence[str]) -> None:
    """Composes, checks, extracts, scores."""
    config = resolved(compose("probe", words))
    if not config["run"]:
        raise ConfigError("run", config["run"], "is not set; give run=RUN, the folder that pretraining wrote (out=)")
    settings: ProbeSettings = own_settings(ProbeSettings, config)
    device = pick_device(str(config["device"]))
    Runtime(**config["runtime"]).prepare()
    run = load_run(Path(settings.run), settings.step, settings.weights, device)
    session = session_of(run, {**config, "device": device})
    out = Path(settings.out or Path(settings.run) / "probe")
    out.mkdir(parents=True, exist_ok=True)
    with session.stop.listening():
        probing = Probing(settings, run, session, out)
        others = list(others_of(settings.beside, settings.protocols, settings.split, probing.splits.fingerprint))
        results = []
        for subject in probing.subjects():
            for name in settings.protocols:
                if name in subject.skip:
                    continue
                results.append(probing.score(subject, PROTOCOLS[name]))
                print(told(results[-1]), flush=True)
        path = out / ("results.jsonl" if settings.split == "test" else "results-holdout.jsonl")
        write_results(path, results)
    images = f"{results[0].images} {settings.split} images"
    print(f"\nTop-1 accuracy on {images}, percent; every choice was made on the hold-out.\n")
    print(tables(results, others))
    print(f"\n{path} has a line for each figure: checkpoint, seed, layer, t, what was chosen and where.")


def told(result: Result) -> str:
    """One figure in a line."""
    chosen = ", ".join(f"{k} {v}" for k, v in result.selected.items() if k not in ("among",))
    return (
        f"{result.encoder}: {result.protocol} {result.accuracy:.2f} (hold-out {result.selected_accuracy:.2f}; {chosen})"
    )


if __name__ == "__main__":
    run_tool(main)

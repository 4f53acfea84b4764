"""Declare and check the settings of `ldae probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ldae.app.probing.robustness import CORRUPTIONS, STRENGTHS, CommonCorruption
from ldae.config.schema import conform
from ldae.core.errors import ConfigError
from ldae.core.types import Count, Natural, PossiblyEmpty, Range
from linear_probe.pooling import POOLINGS
from linear_probe.registry import PROTOCOLS
from linear_probe.subsets import ALL, check_num_labels

SOURCES = (
    "give run=RUN (a folder of pretraining), timm=NAME, onnx=FILE, function=MODULE:FUNCTION, features=FILE.npz or "
    "baseline=pixels|pca|untrained"
)
# keys that select among the features of a network, at the values that select nothing
FIXED_OF_OTHERS = {
    "layers": None,
    "t": None,
    "combine": None,
    "inputs": ["clean"],
    "pooling": ["mean"],
    "select": "accuracy",
}


@dataclass(frozen=True)
class ProbeSettings:
    """Configure a probe: the encoder, the features to read and the protocols to score them with.

    Attributes:
        run: folder of a pretraining run.
        timm: name of a vision transformer of timm, or `local-dir:FOLDER` for an export.
        checkpoint: file with the weights of the timm network; random weights if None.
        size: input size of the timm network in pixels; the network's default if None.
        onnx: .onnx file whose graph maps images (B, 3, H, W) in [0, 1] to features (B, D).
        function: MODULE:FUNCTION in Python that does the same.
        features: .npz file of features (linear_probe.feature_file).
        baseline: score this baseline alone.
        step: step of the run's checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        protocols: names of linear_probe.registry.
        layers: layers to read; from the middle of the encoder to the middle of the decoder if None.
        t: diffusion steps to condition the network on; the objective's default if None.
        combine: `concat` or `mean` makes one vector of the features at all steps of `t`, which are candidates else.
        inputs: `clean`, `noised` or both.
        pooling: reductions of the tokens to one vector: names of linear_probe.pooling.
        select: how layer, step, input and pooling are selected: by `accuracy` on labels, or by a measure of
            linear_probe.geometry that needs none; a protocol's own settings are selected by labels all the same.
        folds: number of parts of a cross-validation over all images of data without a test split; None for none.
        labels: `all`, a number of images per class, or a percentage such as `1%`.
        seeds: seeds of repeated measurements, reported as mean and deviation; `seed` alone if empty.
        corruptions: corruptions of the test images, names of ldae.app.probing.robustness, each at five strengths; the
            classifiers are fitted on images as they are. None if empty.
        split: `test`, or `holdout` to leave the test split unread.
        baselines: add raw pixels, whole-image PCA and the untrained network to the table.
        geometry: report alignment, uniformity, LiDAR, effective rank and RankMe, here and in each result line.
        projector: write features for TensorBoard's projector.
        save: .npz file to write with the features that the first protocol selected.
        compare_to: results.jsonl files of other runs to add to the tables.
        out: folder for results and features.
        seed: seed of heads, label subsets and input noise.
        batch: images per forward pass; 128 on a CPU, 1024 on a GPU if None.
        precision: precision of the network's matrix products.
    """

    run: str | None
    timm: str | None
    checkpoint: str | None
    size: Count | None
    onnx: str | None
    function: str | None
    features: str | None
    baseline: Literal["pixels", "pca", "untrained"] | None
    step: Natural | None
    weights: Literal["ema", "model"]
    protocols: list[str]
    layers: list[Count] | None
    t: list[Natural] | None
    combine: Literal["concat", "mean"] | None
    inputs: list[Literal["clean", "noised"]]
    pooling: list[str]
    select: Literal["accuracy", "effective_rank", "rankme", "alignment", "uniformity"]
    folds: Annotated[int, Range(low=2)] | None
    labels: str | int
    seeds: PossiblyEmpty[Natural]
    corruptions: PossiblyEmpty[str]
    split: Literal["test", "holdout"]
    baselines: bool
    geometry: bool
    projector: bool
    save: str | None
    compare_to: PossiblyEmpty[str]
    out: str | None
    seed: Natural
    batch: Count | None
    precision: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        self._check_source()
        for name in self.protocols:
            conform("protocols", name, Literal[tuple(PROTOCOLS)])
        for name in self.corruptions:
            conform("corruptions", name, Literal[tuple(CORRUPTIONS)])
        if self.corruptions and self.split != "test":
            raise ConfigError("corruptions", self.corruptions, "corrupts the test images; leave split=holdout out")
        for name in self.pooling:
            conform("pooling", name, Literal[tuple(POOLINGS)])
        for key in ("protocols", "layers", "t", "inputs", "pooling", "seeds", "corruptions"):
            if len(set(getattr(self, key) or [])) < len(getattr(self, key) or []):
                raise ConfigError(key, getattr(self, key), "must name each once")
        self._check_folds()
        if self.combine and len(self.t or []) < 2:
            message = "makes one vector of several steps; give two or more, e.g. t=[10,40]"
            raise ConfigError("combine", self.combine, message)
        try:
            check_num_labels(self.labels)
        except ValueError as error:
            raise ConfigError("labels", self.labels, str(error)) from None
        if self.save and self.split != "test":
            raise ConfigError("save", self.save, "writes the test split too; use split=test or leave it out")
        if self.save and Path(self.save).expanduser().is_dir():
            raise ConfigError("save", self.save, "is a folder; give a file, e.g. save=features.npz")
        if self.save and not Path(self.save).expanduser().absolute().parent.is_dir():
            raise ConfigError("save", self.save, "lies in a folder that does not exist; make it first")

    def _check_source(self) -> None:
        sources = [key for key in ("run", "timm", "onnx", "function", "features") if getattr(self, key)]
        if not sources and not self.baseline:
            raise ConfigError("run", self.run, f"is not set; {SOURCES}")
        if len(sources) > 1:
            raise ConfigError(sources[1], getattr(self, sources[1]), f"cannot go with {sources[0]}=; {SOURCES}")
        network = ["run"] if self.baseline != "untrained" else ["run", "timm"]
        if self.baseline and not set(sources) <= set(network):
            raise ConfigError(
                "baseline", self.baseline, f"is scored alone; leave {sources[0]}= out, baselines=true adds all of them"
            )
        if self.baseline == "untrained" and not sources:
            raise ConfigError("baseline", self.baseline, "needs run=RUN or timm=NAME, whose network it is")
        for key in ("checkpoint", "size"):
            if getattr(self, key) and not self.timm:
                raise ConfigError(key, getattr(self, key), "belongs to a network of timm; give timm=NAME")

    def _check_folds(self) -> None:
        fixed: dict[str, Any] = {
            "labels": ALL,
            "split": "test",
            "seeds": [],
            "save": None,
            "projector": False,
            "geometry": False,
        }
        fixed |= {"compare_to": [], "features": None}
        for key, usual in fixed.items():
            if self.folds and getattr(self, key) != usual:
                raise ConfigError(key, getattr(self, key), "cannot go with folds=; leave one of them out")

    @property
    def few(self) -> bool:
        """Return whether a subset of the labels is used."""
        return self.labels != ALL

    @property
    def common_corruptions(self) -> list[CommonCorruption]:
        """Return every corruption at every strength."""
        return [CommonCorruption(name, strength) for name in self.corruptions for strength in STRENGTHS]

    @property
    def repetitions(self) -> list[int]:
        """Return the seeds of all measurements."""
        return self.seeds or [self.seed]

"""What ldae probe is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldae.config.schema import conform
from ldae.core.errors import ConfigError
from ldae.core.types import Count, Natural, PossiblyEmpty
from linear_probe.pooling import POOLINGS
from linear_probe.registry import PROTOCOLS
from linear_probe.subsets import ALL, check_form

SOURCES = "give run=RUN (a folder of pretraining), timm=NAME, features=FILE.npz or baseline=pixels|pca|untrained"


@dataclass(frozen=True)
class ProbeSettings:
    """What is probed.

    Attributes:
        run: folder of a pretraining run.
        timm: a vision transformer of timm instead, or `local-dir:FOLDER` for an export.
        checkpoint: file of its weights; random ones if None.
        size: side of its input in pixels; its own if None.
        features: an .npz of features instead (linear_probe.feature_file).
        floor: a floor alone.
        step: which checkpoint of the run; the newest if None.
        weights: the average of the run's weights or the last ones.
        protocols: names of linear_probe.protocols.
        layers: which are read; from the middle of the encoder to the middle of the decoder if None.
        t: steps of the noise level that the network is told; the usual one if None.
        inputs: `clean`, `noised` or both.
        pooling: how tokens become one vector: names of linear_probe.pooling.
        labels: `all`, images per class, or a share such as `1%`.
        seeds: of repetitions whose mean and deviation are told; one with `seed` if empty.
        split: `test`, or `holdout` to leave the test split unread.
        floors: whether raw pixels, PCA and the untrained network join the table.
        geometry: whether figures that need no labels are told too.
        projector: whether features go to TensorBoard's projector.
        save: .npz for the features that the first protocol chose.
        beside: results of other runs, files that this tool wrote, to join the tables.
        out: folder for results and features.
        seed: of heads, subsets and noise.
        batch: images of a forward pass; what suits the device if None.
        precision: of the network's matrix products.
    """

    run: str | None
    timm: str | None
    checkpoint: str | None
    size: Count | None
    features: str | None
    baseline: Literal["pixels", "pca", "untrained"] | None
    step: Natural | None
    weights: Literal["ema", "model"]
    protocols: list[str]
    layers: list[Count] | None
    t: list[Natural] | None
    inputs: list[Literal["clean", "noised"]]
    pooling: list[str]
    labels: str | int
    seeds: PossiblyEmpty[Natural]
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
        for name in self.pooling:
            conform("pooling", name, Literal[tuple(POOLINGS)])
        for key in ("protocols", "layers", "t", "inputs", "pooling", "seeds"):
            if len(set(getattr(self, key) or [])) < len(getattr(self, key) or []):
                raise ConfigError(key, getattr(self, key), "must name each once")
        try:
            check_form(self.labels)
        except ValueError as error:
            raise ConfigError("labels", self.labels, str(error)) from None
        if self.save and self.split != "test":
            raise ConfigError("save", self.save, "writes the test split too; use split=test or leave it out")
        if self.save and Path(self.save).expanduser().is_dir():
            raise ConfigError("save", self.save, "is a folder; give a file, e.g. save=features.npz")
        if self.save and not Path(self.save).expanduser().absolute().parent.is_dir():
            raise ConfigError("save", self.save, "lies in a folder that does not exist; make it first")

    def _check_source(self) -> None:
        given = [key for key in ("run", "timm", "features") if getattr(self, key)]
        if not given and not self.baseline:
            raise ConfigError("run", self.run, f"is not set; {SOURCES}")
        if len(given) > 1:
            raise ConfigError(given[1], getattr(self, given[1]), f"cannot go with {given[0]}=; {SOURCES}")
        if self.baseline and given not in ([], ["run"]):
            raise ConfigError(
                "baseline", self.baseline, f"is scored alone; leave {given[0]}= out, baselines=true adds all of them"
            )
        if self.baseline == "untrained" and not self.run:
            raise ConfigError("baseline", self.baseline, "needs run=RUN, whose network it is")
        for key in ("checkpoint", "size"):
            if getattr(self, key) and not self.timm:
                raise ConfigError(key, getattr(self, key), "belongs to a network of timm; give timm=NAME")

    @property
    def few(self) -> bool:
        """Whether only some labels are used."""
        return self.labels != ALL

    @property
    def repetitions(self) -> list[int]:
        """The seeds of all measurements."""
        return self.seeds or [self.seed]

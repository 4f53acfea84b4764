"""Scores an encoder with frozen features: linear probes and nearest neighbours, beside honest floors.

    python tools/probe.py run=RUN
    python tools/probe.py run=RUN protocols=[lbfgs,knn,paper,mae,dinov2] layers=[2,4,6] t=[10,40]
    python tools/probe.py run=RUN split=holdout floors=false      # while settings are still being chosen
    python tools/probe.py run=RUN labels=1% seeds=[0,1,2]         # few labels: mean and deviation
    python tools/probe.py run=RUN data=cifar100 data.root=FOLDER  # other images than it was trained on
    python tools/probe.py timm=vit_base_patch16_224.mae checkpoint=FILE data=cifar10 data.root=FOLDER
    python tools/probe.py features=FILE.npz                       # features that another program read

Layer, noise level and hyper-parameters are chosen on the hold-out; the test split is read once, for what was
chosen. Prints a table and writes RUN/probe/results.jsonl, a line for every figure with all that was chosen and
what each layer had on the hold-out. With few labels the choice is made by cross-validation among them alone.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _cli import compose, resolved, run_tool
from _looks import draw_heatmaps, measure_geometry, project
from _precision import announce, settle_precision
from _probe_settings import ProbeSettings
from _probed import Probed, open_probed
from _scores import others_of, tables, warned
from _session import commit, own_settings
from _subjects import Subject

from ldae.engine.runtime import describe_hardware
from ldae.errors import ConfigError, DataError
from linear_probe import subsets
from linear_probe.banks import write_features
from linear_probe.checks import chance
from linear_probe.choosing import Chosen, choose, mean_and_deviation
from linear_probe.features import Cell
from linear_probe.protocols import Protocol
from linear_probe.registry import PROTOCOLS
from linear_probe.results import Result, percent, place_of_choice, title, write_results
from linear_probe.subsets import Part, Plan


@dataclass(frozen=True)
class Measured:
    """One figure under one seed: accuracy on what was asked for, and how it was chosen."""

    seed: int
    accuracy: float
    chosen: Chosen
    chosen_on: str

    @property
    def selected(self) -> dict[str, object]:
        """The setting, and where."""
        return {**self.chosen.choice.setting, "cell": str(self.chosen.cell)}


class Probing:
    """One call of the tool.

    Args:
        settings: what is probed, and how.
        probed: the subjects and their labels.
    """

    def __init__(self, settings: ProbeSettings, probed: Probed):
        self.settings, self.probed = settings, probed
        self.counts = None
        self.warnings = self._checked()
        if settings.few:
            try:
                self.counts = subsets.counts_of(
                    settings.labels, probed.labels("train"), probed.labels("holdout"), len(probed.classes)
                )
            except ValueError as error:
                raise ConfigError("labels", settings.labels, str(error)) from None

    def _checked(self) -> list[str]:
        """Return what makes every accuracy of this call doubtful.

        Raises:
            DataError: there is nothing to score.
        """
        few, on_test = self.settings.few, self.settings.split == "test"
        holdout = self.probed.labels("holdout")
        if not few and not len(holdout):
            told = "has no hold-out, on which layer and settings are chosen; give more images or data.holdout"
            raise DataError(f"{self.probed.place} {told}")
        scored = self.probed.labels("test") if on_test else holdout
        chosen_on = holdout[:0] if few or not on_test else holdout
        train, classes = self.probed.labels("train"), self.probed.classes
        return warned(self.probed.place, train, chosen_on, scored, classes, self.settings.split)

    def chance(self) -> float:
        """Return the accuracy in percent of always answering the most frequent training class."""
        return chance(self.probed.labels("train"), self.probed.labels(self.settings.split))

    def plan(self, seed: int) -> Plan:
        """What is fitted, what chosen on."""
        if self.counts is None:
            return subsets.whole()
        return subsets.few(self.probed.labels("train"), self.counts, seed)

    def announce(self, subject: Subject, protocol: Protocol) -> None:
        """Says how many images will be encoded beyond those whose features are kept, if any.

        Raises:
            ConfigError: there are no images.
        """
        plans = [self.plan(seed) for seed in self.settings.repetitions]
        fits = [parts for plan in plans for parts in (*([fit] for fit, _ in plan.trials), plan.final)]
        images = sum(protocol.encodings(subject, parts) for parts in fits)
        if images and subject.encode is None:
            told = "encodes images anew for every step, and a file of features has none; leave it out"
            raise ConfigError("protocols", protocol.name, told)
        if images:
            print(f"{subject.name}: {title(protocol.name)} encodes {images:,} augmented images", flush=True)

    def score(self, subject: Subject, protocol: Protocol) -> Result:
        """One figure: choices by the plan's trials, then one fit on all labels and one look at the test split."""
        self.announce(subject, protocol)
        found = [self._measured(subject, protocol, seed) for seed in self.settings.repetitions]
        return self._result(subject, protocol, found)

    def _measured(self, subject: Subject, protocol: Protocol, seed: int) -> Measured:
        plan, classes, split = self.plan(seed), len(self.probed.classes), self.settings.split
        chosen = choose(protocol, subject, plan, classes, seed)
        accuracy = chosen.choice.accuracy
        if split == "test" or self.settings.few:
            setting = chosen.choice.setting
            accuracy = protocol.scored(subject, chosen.cell, setting, plan.final, Part(split), classes, seed)
        return Measured(seed, accuracy, chosen, plan.chosen_on)

    def _result(self, subject: Subject, protocol: Protocol, found: Sequence[Measured]) -> Result:
        """The line; cell and setting of the first seed, accuracies the means of all."""
        first, cell = found[0], found[0].chosen.cell
        accuracy, deviation = mean_and_deviation([m.accuracy for m in found])
        asked = subject.features(Part(self.settings.split), cell)
        among = {str(c): round(self._mean(found, c), 2) for c in first.chosen.among}
        by_seed = [
            {"seed": m.seed, "accuracy": m.accuracy, "selected_accuracy": m.chosen.choice.accuracy, **m.selected}
            for m in found
        ]
        return Result(
            encoder=subject.name,
            protocol=protocol.name,
            protocol_source=protocol.source,
            accuracy=accuracy,
            split=self.settings.split,
            images=len(asked),
            selected={**first.selected, "among": among, **({"by_seed": by_seed} if len(found) > 1 else {})},
            selected_on=first.chosen_on,
            selected_accuracy=mean_and_deviation([m.chosen.choice.accuracy for m in found])[0],
            layer=cell.layer,
            t=cell.t,
            input=cell.input,
            pooling=cell.pooling,
            dimensions=asked.x.shape[1],
            checkpoint=subject.checkpoint,
            step=subject.step,
            seed=self.probed.seed,
            data=self.probed.data,
            data_fingerprint=self.probed.fingerprint,
            config=self.probed.config,
            commit=commit(),
            command=shlex.join(["python", *sys.argv]),
            hardware=describe_hardware(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            labels=subsets.told(self.settings.labels),
            seeds=self.settings.seeds,
            deviation=deviation,
            warnings=self.warnings,
        )

    @staticmethod
    def _mean(found: Sequence[Measured], cell: Cell) -> float:
        return mean_and_deviation([m.chosen.among[cell] for m in found])[0]

    def path(self, kind: str = "results") -> Path:
        """The file of results: its name says what else than all labels, the test split and all subjects it is of."""
        settings = self.settings
        few = f"-{subsets.told(settings.labels).replace(' ', '-')}" if settings.few else ""
        holdout = "-holdout" if settings.split == "holdout" else ""
        return self.probed.out / f"{kind}{'-' + settings.floor if settings.floor else ''}{few}{holdout}.jsonl"


def main(words: Sequence[str]) -> None:
    """Composes, checks, extracts, scores."""
    config, precision = settle_precision(resolved(compose("probe", words)))
    settings: ProbeSettings = own_settings(ProbeSettings, config)
    if settings.run or settings.timm:
        announce(precision)
    with open_probed(settings, config) as probed:
        probing = Probing(settings, probed)
        labels = subsets.told(settings.labels)
        others = list(others_of(settings.beside, settings.protocols, settings.split, probed.fingerprint, labels))
        results, subjects = [], []
        for subject in probed.subjects():
            subjects.append(subject)
            for name in settings.protocols:
                if name in subject.skip:
                    continue
                results.append(probing.score(subject, PROTOCOLS[name]))
                print(told(results[-1]), flush=True)
        write_results(probing.path(), results)
        look(settings, probed, subjects, results)
    images = f"{results[0].images} {settings.split} images"
    print(f"\nTop-1 accuracy on {images}, percent; {chosen_where(results[0])}.\n")
    print(tables(results, others, probing.chance()))
    print(f"\n{probing.path()} has a line for each figure: checkpoint, seed, layer, t, what was chosen and where.")


def look(settings: ProbeSettings, probed: Probed, subjects: Sequence[Subject], results: Sequence[Result]) -> None:
    """Everything but the table: heat maps, and what else was asked for."""
    best, own = results[0], [r for r in results if r.encoder == subjects[0].name]
    draw_heatmaps(own, probed.out)
    cell = next(cell for cell in subjects[0].cells if str(cell) == best.selected["cell"])
    if settings.save:
        splits = {split: subjects[0].features(Part(split), cell) for split in ("train", "holdout", "test")}
        write_features(
            Path(settings.save), splits, fingerprint=probed.fingerprint, encoder=best.encoder, cell=str(cell)
        )
    if settings.projector:
        count = project(subjects[0], cell, probed.classes, probed.out)
        folder = shlex.quote(str(probed.out))
        print(f"\n{count} hold-out images at {cell} for the projector:  tensorboard --logdir {folder}")
    if settings.geometry:
        print(
            f"\nWithout labels (linear_probe/geometry.py):\n\n{measure_geometry(subjects, probed.out, settings.seed)}"
        )


def chosen_where(result: Result) -> str:
    """How choices were made, for the table's head."""
    if result.labels == "all":
        seeds = f", mean ± sample deviation of {len(result.seeds)} seeds" if result.deviation is not None else ""
        return f"every choice was made on the hold-out{seeds}"
    seeds = f", {len(result.seeds)} draws, mean ± sample deviation" if result.deviation is not None else ""
    return f"labels: {result.labels} of train{seeds}; every choice was made by {result.selected_on} among them"


def told(result: Result) -> str:
    """One figure in a line."""
    chosen = ", ".join(f"{k} {v}" for k, v in result.selected.items() if k not in ("among", "by_seed"))
    where = f"{place_of_choice(result)} {result.selected_accuracy:.2f}"
    return f"{result.encoder}: {title(result.protocol)} {percent(result)} ({where}; {chosen})"


if __name__ == "__main__":
    run_tool(main)

"""Score an encoder and baselines on frozen features by linear probes and nearest neighbours.

    ldae probe run=RUN
    ldae probe run=RUN protocols=[lbfgs,knn,paper,mae,dinov2] layers=[2,4,6] t=[10,40]
    ldae probe run=RUN split=holdout baselines=false      # while settings are being selected
    ldae probe run=RUN t=[10,60,120] combine=concat pooling=[mean,grid2]   # other readouts
    ldae probe run=RUN t=[10,60,120] select=effective_rank                 # features selected without labels
    ldae probe run=RUN labels=1% seeds=[0,1,2]         # few labels: mean and deviation
    ldae probe run=RUN data=imagefolder data.root=FOLDER folds=5       # cross-validation, without a test split
    ldae probe run=RUN corruptions=[noise,blur,jpeg]   # accuracy under corruptions of the test images
    ldae probe run=RUN protocols=[retrieval]           # mean average precision and recall
    ldae probe run=RUN protocols=[ood_knn,ood_energy] outliers=photos     # images of another data set
    ldae probe run=RUN data=cifar100 data.root=FOLDER  # another data set than the training data
    ldae probe timm=vit_base_patch16_224.mae checkpoint=FILE data=cifar10 data.root=FOLDER
    ldae probe onnx=FILE data=cifar10 data.root=FOLDER # or function=MODULE:FUNCTION in Python
    ldae probe features=FILE.npz                       # features of another program

Selects layer, noise level and hyper-parameters on the hold-out and reads the test split once, for the selected setting.
Prints a table and writes RUN/probe/results.jsonl: a line for every accuracy, with the selected setting and the hold-out
accuracy of every layer. With few labels, the selection uses cross-validation among those labels alone;
with one of each class, one further image of each.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.diagnostics import (
    choose_without_labels,
    draw_heatmaps,
    measure_geometry,
    project,
    with_geometry,
    write_geometry,
)
from ldae.app.probing.encoders import ProbedEncoder
from ldae.app.probing.inputs import ProbeInputs, open_inputs
from ldae.app.probing.kept_baselines import KeptBaselines
from ldae.app.probing.robustness import mean_by_corruption
from ldae.app.probing.settings import ProbeSettings
from ldae.app.probing.tables import read_comparisons, tables, warn_of_labels
from ldae.app.provenance import command, commit
from ldae.app.session import root_settings
from ldae.core.errors import ConfigError, DataError
from ldae.engine.runtime import describe_hardware
from linear_probe import subsets
from linear_probe.checks import chance, check_features
from linear_probe.feature_file import write_features
from linear_probe.features import FeatureKey
from linear_probe.folds import merge_folds
from linear_probe.protocols import Chosen, Protocol, choose, mean_and_deviation
from linear_probe.registry import PROTOCOLS
from linear_probe.results import Result, pack_correct, pack_values, percent, place_of_choice, title, write_results
from linear_probe.statistics import interval
from linear_probe.subsets import Part, Plan


@dataclass(frozen=True)
class Measurement:
    """Accuracy under one seed, with the selected setting."""

    seed: int
    accuracy: float
    chosen: Chosen
    chosen_on: str
    per_image: Tensor | None  # (N,) in [0, 1], whose mean is the accuracy; None on the images of the selection
    further: Mapping[str, float] = field(default_factory=dict)  # other measures, percent

    @property
    def selected(self) -> dict[str, object]:
        """Return the selected setting and feature key."""
        return {**self.chosen.choice.setting, "features": str(self.chosen.feature_key)}


class ProbeRunner:
    """Scores encoders by protocols.

    Args:
        settings: settings of the command.
        inputs: encoders and labels.
    """

    def __init__(self, settings: ProbeSettings, inputs: ProbeInputs):
        self.settings, self.inputs = settings, inputs
        self.counts, self.kept = None, KeptBaselines(settings, inputs)
        self.warnings = self._check_labels()
        self.warned = set[str]()  # encoders whose features were warned of
        if settings.few:
            try:
                self.counts = subsets.images_per_class(
                    settings.labels, inputs.labels("train"), inputs.labels("holdout"), len(inputs.classes)
                )
            except ValueError as error:
                raise ConfigError("labels", settings.labels, str(error)) from None

    def _check_labels(self) -> list[str]:
        """Return warnings that apply to every accuracy of this call.

        Raises:
            DataError: there is nothing to score.
        """
        few, on_test = self.settings.few, self.settings.split == "test"
        holdout = self.inputs.labels("holdout")
        if not few and not len(holdout):
            message = "has no hold-out, on which layer and settings are selected; give more images or data.holdout"
            raise DataError(f"{self.inputs.source} {message}")
        scored = self.inputs.labels("test") if on_test else holdout
        chosen_on = holdout[:0] if few or not on_test else holdout
        train, classes = self.inputs.labels("train"), self.inputs.classes
        return warn_of_labels(self.inputs.source, train, chosen_on, scored, classes, self.settings.split)

    def chance(self) -> float:
        """Return the accuracy in percent of always answering the most frequent training class."""
        return chance(self.inputs.labels("train"), self.inputs.labels(self.settings.split))

    def plan(self, seed: int) -> Plan:
        """Return the splits to fit, to select and to score on."""
        if self.counts is None:
            return subsets.plan_all_labels()
        return subsets.plan_few_labels(self.inputs.labels("train"), self.counts, seed)

    def announce(self, encoder: ProbedEncoder, protocol: Protocol) -> None:
        """Print how many images a protocol encodes in addition to the cached features, if any.

        Raises:
            ConfigError: the protocol needs images, and the encoder has features alone.
        """
        plans = [self.plan(seed) for seed in self.settings.repetitions]
        fits = [parts for plan in plans for parts in (*([fit] for fit, _ in plan.trials), plan.final)]
        images = sum(protocol.num_encodings(encoder, parts) for parts in fits)
        if images and encoder.encode is None:
            message = "encodes images anew for every step, and a file of features has none; leave it out"
            raise ConfigError("protocols", protocol.name, message)
        if images:
            print(f"{encoder.name}: {title(protocol.name)} encodes {images:,} augmented images", flush=True)

    def run(self) -> tuple[list[ProbedEncoder], list[Result]]:
        """Score every encoder by every protocol, print a line for each accuracy, and return encoders and results."""
        encoders, results = [], []
        for candidate in self.inputs.encoders():
            encoders.append(candidate)
            encoder = self.narrowed(candidate)
            for name in self.settings.protocols:
                if name in encoder.skip:
                    continue
                results.append(self.score(encoder, PROTOCOLS[name]))
                print(summary_line(results[-1]), flush=True)
        return encoders, results

    def narrowed(self, encoder: ProbedEncoder) -> ProbedEncoder:
        """Return an encoder with the features that a label-free measure selects, if `select` names one."""
        if self.settings.select == "accuracy" or not any(c.layer for c in encoder.feature_keys):
            return encoder
        narrowed = choose_without_labels(encoder, self.settings.select)
        print(f"{encoder.name}: {self.settings.select} selects {narrowed.feature_keys[0]}", flush=True)
        return narrowed

    def score(self, encoder: ProbedEncoder, protocol: Protocol) -> Result:
        """Select by the plan's trials, then fit once on all labels and score the test split once."""
        if (kept := self.kept.read(encoder, protocol)) is not None:
            return kept
        self.announce(encoder, protocol)
        measurements = [self._measure(encoder, protocol, seed) for seed in self.settings.repetitions]
        result = self._result(encoder, protocol, measurements)
        self.kept.write(encoder, protocol, result)
        return result

    def _measure(self, encoder: ProbedEncoder, protocol: Protocol, seed: int) -> Measurement:
        plan, classes, split = self.plan(seed), len(self.inputs.classes), self.settings.split
        chosen = choose(protocol, encoder, plan, classes, seed)
        on_selection = split == "holdout" and not self.settings.few
        if on_selection and not protocol.needs_outliers:
            return Measurement(seed, chosen.choice.accuracy, chosen, plan.chosen_on, None)
        fits = [Part("train")] if on_selection else plan.final
        corruptions = self.settings.common_corruptions
        parts = [Part(corruption.split) for corruption in corruptions] or [Part(split)]
        setting, feature_key = chosen.choice.setting, chosen.feature_key
        scores = protocol.evaluate_source(encoder, feature_key, setting, fits, parts, classes, seed)
        per_part = scores.per_image.view(len(parts), -1)  # (corruptions or 1, N)
        means = mean_by_corruption(corruptions, per_part)
        return Measurement(seed, scores.score, chosen, plan.chosen_on, per_part.mean(0), {**scores.further, **means})

    def _result(self, encoder: ProbedEncoder, protocol: Protocol, measurements: Sequence[Measurement]) -> Result:
        """Return the result: setting of the first seed, mean accuracies over all seeds."""
        first, feature_key = measurements[0], measurements[0].chosen.feature_key
        mean, deviation = mean_and_deviation([m.accuracy for m in measurements])
        per_image = [m.per_image.numpy() for m in measurements if m.per_image is not None]
        certain = interval(np.mean(per_image, axis=0)) if per_image else None
        is_binary = all(np.isin(values, (0, 1)).all() for values in per_image)
        measure = f"{protocol.measure}{' under corruption' if self.settings.corruptions else ''}"
        scored = encoder.features(Part(self.settings.split), feature_key)
        by = (
            {} if self.settings.select == "accuracy" or not feature_key.layer else {"features_by": self.settings.select}
        )
        among = {str(c): round(self._mean(measurements, c), 2) for c in first.chosen.among}
        by_seed = [
            {"seed": m.seed, "accuracy": m.accuracy, "selected_accuracy": m.chosen.choice.accuracy, **m.selected}
            for m in measurements
        ]
        return Result(
            encoder=encoder.name,
            protocol=protocol.name,
            protocol_source=protocol.source,
            accuracy=mean,
            split=self.settings.split,
            images=len(scored),
            selected={
                **first.selected,
                **by,
                "among": among,
                **({"by_seed": by_seed} if len(measurements) > 1 else {}),
            },
            selected_on=first.chosen_on,
            selected_accuracy=mean_and_deviation([m.chosen.choice.accuracy for m in measurements])[0],
            layer=feature_key.layer,
            t=feature_key.t,
            input=feature_key.input,
            pooling=feature_key.pooling_and_combination,
            dimensions=scored.x.shape[1],
            checkpoint=encoder.checkpoint,
            step=encoder.step,
            seed=self.inputs.seed,
            data=self.inputs.data,
            data_fingerprint=self.inputs.fingerprint,
            config=self.inputs.config,
            commit=commit(),
            command=command(),
            hardware=describe_hardware(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            labels=subsets.describe_labels(self.settings.labels),
            seeds=self.settings.seeds,
            deviation=deviation,
            warnings=[*self.warnings, *self._check_features(encoder, scored.x)],
            correct=pack_correct(per_image) if per_image and is_binary else "",
            low=certain.low if certain else None,
            high=certain.high if certain else None,
            measure=measure,
            values="" if is_binary else pack_values(np.mean(per_image, axis=0)),
            further={name: round(float(np.mean([m.further[name] for m in measurements])), 4) for name in first.further},
            outliers=self.inputs.outliers if protocol.needs_outliers else "",
        )

    def _check_features(self, encoder: ProbedEncoder, x: Tensor) -> list[str]:
        """Return warnings about the features of an encoder, and print them."""
        sentences = check_features(x)
        for sentence in sentences:
            if encoder.name not in self.warned:
                print(f"warning: {encoder.name}: {sentence}", file=sys.stderr)
                self.warned.add(encoder.name)
        return sentences

    @staticmethod
    def _mean(measurements: Sequence[Measurement], feature_key: FeatureKey) -> float:
        return mean_and_deviation([m.chosen.among[feature_key] for m in measurements])[0]

    def path(self, stem: str = "results") -> Path:
        """Return the file of results, named by baseline, readout, number of labels and split."""
        settings = self.settings
        few = f"-{subsets.describe_labels(settings.labels).replace(' ', '-')}" if settings.few else ""
        holdout = "-holdout" if settings.split == "holdout" else ""
        baseline = f"-{settings.baseline}" if settings.baseline else ""
        combined = f"-{settings.combine}" if settings.combine else ""
        corrupted = "-corrupted" if settings.corruptions else ""
        folds = f"-{settings.folds}-fold" if settings.folds else ""
        selected = f"-{settings.select.replace('_', '-')}" if settings.select != "accuracy" else ""
        return self.inputs.out / f"{stem}{baseline}{combined}{selected}{corrupted}{folds}{few}{holdout}.jsonl"


def main(argv: Sequence[str]) -> None:
    """Run `ldae probe`."""
    config, precision = settle_precision(resolved(compose("probe", argv)))
    settings: ProbeSettings = root_settings(ProbeSettings, config)
    if settings.run or settings.timm:
        announce(precision)
    if settings.folds:
        path, results, chance = score_folds(settings, config)
        write_results(path, results)
        print_tables(settings, results, [], chance, path)
        return
    with open_inputs(settings, config) as inputs:
        runner = ProbeRunner(settings, inputs)
        labels = subsets.describe_labels(settings.labels)
        comparisons = list(
            read_comparisons(settings.compare_to, settings.protocols, settings.split, inputs.fingerprint, labels)
        )
        encoders, results = runner.run()
        geometry = measure_geometry(encoders, settings.seed) if settings.geometry else []
        results = with_geometry(results, geometry)
        write_results(runner.path(), results)
        write_diagnostics(settings, inputs, encoders, results)
        if geometry:
            print(f"\nWithout labels (linear_probe/geometry.py):\n\n{write_geometry(geometry, inputs.out)}")
    print_tables(settings, results, comparisons, runner.chance(), runner.path())


def print_tables(
    settings: ProbeSettings, results: Sequence[Result], others: Sequence[Result], chance: float, path: Path
) -> None:
    """Print the tables of a probe below what they show."""
    images = f"{results[0].images} {settings.split} images"
    names = " and ".join(dict.fromkeys(result.measure for result in results)).replace("accuracy", "top-1 accuracy", 1)
    print(f"\n{names[0].upper()}{names[1:]} on {images}, percent; {describe_selection(results[0])}.\n")
    print(tables(results, others, chance))
    print(f"\n{path} has a line for each accuracy: checkpoint, seed, layer, t, selected setting and split.")


def score(argv: Sequence[str]) -> list[Result]:
    """Return the results of a probe with these arguments, without writing tables or diagnostics."""
    config, _ = settle_precision(resolved(compose("probe", argv)))
    settings: ProbeSettings = root_settings(ProbeSettings, config)
    if settings.folds:
        return score_folds(settings, config)[1]
    with open_inputs(settings, config) as inputs:
        encoders, results = ProbeRunner(settings, inputs).run()
        return with_geometry(results, measure_geometry(encoders, settings.seed) if settings.geometry else [])


def score_folds(settings: ProbeSettings, config: Mapping[str, Any]) -> tuple[Path, list[Result], float]:
    """Score every part of the data after a fit on all others.

    Returns:
        The file of the results, the results over all images, and the accuracy of the most frequent class in percent.
    """
    of_fold, chances, path = [], [], Path()
    for number in range(1, (settings.folds or 0) + 1):
        fold = f"{number}/{settings.folds}"
        print(f"fold {fold}", flush=True)
        with open_inputs(settings, {**config, "data": {**config["data"], "fold": fold}}) as inputs:
            runner = ProbeRunner(settings, inputs)
            of_fold.append(runner.run()[1])
            chances.append(runner.chance())
            path = runner.path()
    return path, [merge_folds(of_one) for of_one in zip(*of_fold, strict=True)], float(np.mean(chances))


def write_diagnostics(
    settings: ProbeSettings, inputs: ProbeInputs, encoders: Sequence[ProbedEncoder], results: Sequence[Result]
) -> None:
    """Write heat maps and the optional features and projector data."""
    best, of_encoder = results[0], [r for r in results if r.encoder == encoders[0].name]
    draw_heatmaps(of_encoder, inputs.out)
    feature_key = next(
        feature_key for feature_key in encoders[0].feature_keys if str(feature_key) == best.selected["features"]
    )
    if settings.save:
        splits = {split: encoders[0].features(Part(split), feature_key) for split in ("train", "holdout", "test")}
        write_features(
            Path(settings.save),
            splits,
            fingerprint=inputs.fingerprint,
            encoder=best.encoder,
            feature_key=str(feature_key),
        )
    if settings.projector:
        count = project(encoders[0], feature_key, inputs.classes, inputs.out)
        folder = shlex.quote(str(inputs.out))
        print(f"\n{count} hold-out images at {feature_key} for the projector:  tensorboard --logdir {folder}")


def describe_selection(result: Result) -> str:
    """Return how settings were selected, for the table's caption."""
    what = "every setting"
    if "features_by" in result.selected:
        what = f"features were selected without labels, by {result.selected['features_by']}, every other setting"
    if result.labels == "all":
        seeds = f", mean ± sample deviation of {len(result.seeds)} seeds" if result.deviation is not None else ""
        return f"{what} was selected on the hold-out{seeds}"
    seeds = f", {len(result.seeds)} subsets, mean ± sample deviation" if result.deviation is not None else ""
    one = result.selected_on == subsets.ONE_FURTHER
    how = f"on {result.selected_on}" if one else f"by {result.selected_on} among them"
    return f"labels: {result.labels} of train{seeds}; {what} was selected {how}"


def summary_line(result: Result) -> str:
    """Return a line on one accuracy."""
    setting = ", ".join(f"{k} {v}" for k, v in result.selected.items() if k not in ("among", "by_seed"))
    accuracy = " accuracy" if result.outliers else ""  # what outlier detectors are selected by
    where = f"{place_of_choice(result)}{accuracy} {result.selected_accuracy:.2f}"
    return f"{result.encoder}: {title(result.protocol)} {percent(result)} ({where}; {setting})"

"""Fine-tune a pretrained encoder end to end on the labels of its data.

    ldae finetune run=RUN
    ldae finetune run=RUN weights=untrained out=OUT          # the same network from scratch
    ldae finetune run=RUN data=cifar100 data.root=FOLDER     # on other images than those of the pretraining
    ldae finetune run=RUN train.epochs=20 optim.layer_decay=0.65 split=holdout

Folds adaLN at a fixed noise level and trains the resulting plain vision transformer with a new head: layer-wise
learning rates, drop path, MixUp, CutMix, RandAugment. Evaluates on the hold-out during training and once on the test
split at the end, with the averaged weights. Writes OUT/results.jsonl. The same command again resumes.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, saved_config
from ldae.app.probing.tables import data_source, warn_of_labels
from ldae.app.provenance import command, commit
from ldae.app.resumption import is_finished, no_start, start_run
from ldae.app.session import Session, loggers_of, root_settings, session_of, train_settings
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash
from ldae.core.rng import seed_of
from ldae.core.types import Fraction, Natural, NonNegative, Range
from ldae.data.images import ImageSet, Splits
from ldae.data.loader import in_order
from ldae.engine.run_folder import RunFolder
from ldae.engine.runtime import describe_hardware
from ldae.engine.trainer import RunContext, Trainer
from ldae.export.encoder import Encoder, Run, load_run
from ldae.export.fold import plain_vit
from linear_probe.checks import chance
from linear_probe.finetune import FineTuning, Mix
from linear_probe.results import Result, pack_correct, read_results, write_results
from linear_probe.statistics import interval

MODEL = "classifier"


@dataclass(frozen=True)
class FinetuneSettings:
    """Configure fine-tuning: the encoder and its regularization.

    Attributes:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema`, `model`, or `untrained` to train the same network from scratch.
        layer: number of blocks to keep; the encoder half if None.
        t: diffusion step at which adaLN is folded; the objective's default if None.
        drop_path: drop rate of the last block; rates rise linearly from 0 at the first block.
        mixup: alpha of MixUp; 0 switches it off.
        cutmix: alpha of CutMix; 0 switches it off.
        smoothing: label smoothing.
        num_evals: number of evaluations on the hold-out during training.
        split: split of the final accuracy.
    """

    run: str
    step: Natural | None
    weights: Literal["ema", "model", "untrained"]
    layer: Natural | None
    t: Natural | None
    drop_path: Annotated[float, Range(0, 0.99)]
    mixup: NonNegative
    cutmix: NonNegative
    smoothing: Fraction
    num_evals: Natural
    split: Literal["test", "holdout"]


def main(argv: Sequence[str]) -> None:
    """Run `ldae finetune`."""
    config = resolved(compose("finetune", argv))
    if not config["run"]:
        raise ConfigError("run", config["run"], "is not set; give run=RUN, the folder that pretraining wrote (out=)")
    settings: FinetuneSettings = root_settings(FinetuneSettings, config)
    loggers = loggers_of(config)
    run = load_run(Path(settings.run), settings.step, settings.weights)
    encoder = Encoder(run.objective, settings.layer, settings.t)
    folder = RunFolder(Path(config["out"] or Path(settings.run) / "finetune"))
    session = session_for(run, config, saved_config(folder.path))
    train = train_settings(session.config)
    with session.running(folder):
        if is_finished(folder, session.config):
            print(f"{folder.path} is finished; nothing to do")
            return
        announce(session.precision)
        splits = session.splits(labels_for="fine-tuning")
        warnings = check_data(splits, session, settings)
        on_start = start_run(folder, session.config, splits) if session.world.main else no_start
        module = classifier(encoder, settings, splits, session)
        loader = session.loader(splits.train, session.parts.augment, check_even(train.batch))
        record = {"config": session.config, "data": splits.fingerprint}
        every = max(1, math.ceil(train.total_steps(loader.steps_per_epoch) / max(1, settings.num_evals)))
        evaluations = (
            [HoldOut(module, splits.holdout, session, every)] if settings.num_evals and session.world.main else []
        )
        job = RunContext(
            folder,
            session.world,
            record,
            evaluations,
            session.stop,
            session.progress,
            threads=session.threads,
            loggers=loggers,
            on_start=on_start,
            cache=session.cache,
        )
        trainer = Trainer({MODEL: module}, loader, session.parts.optim, train, session.seed, job)
        trainer.fit()
        if session.world.main:
            with trainer.state.ema.applied():
                result = score(module, splits, session, settings, run, encoder, trainer.total, warnings)
            write_results(folder.path / "results.jsonl", [result])
            print(f"{result.encoder}, fine-tuned: {result.accuracy:.2f} % of {result.images} {result.split} images "
                  f"(hold-out {result.selected_accuracy:.2f}; always the most frequent class: "
                  f"{chance(splits.train.own_labels, getattr(splits, settings.split).own_labels):.2f})")  # fmt: skip
            folder.set_status("done", trainer.total)


def score_run(argv: Sequence[str]) -> list[Result]:
    """Fine-tune with these arguments, `out=` among them, or go on where that was stopped; return the result."""
    main(argv)
    return read_results(Path(resolved(compose("finetune", argv))["out"]) / "results.jsonl")


def session_for(run: Run, config: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Session:
    """Open a session with the run's data and this config; `encoder` records the checkpoint."""
    data = session_of(run, config).config["data"]
    system = {key: run.config[key] for key in ("task",)}
    return Session({**config, **system, "data": data, "encoder": run.checkpoint.hash}, saved)


def check_data(splits: Splits, session: Session, settings: FinetuneSettings) -> list[str]:
    """Return warnings about the accuracy, and print them.

    Raises:
        DataError: there is nothing to score, or there is no hold-out.
    """
    source = data_source(session.config["data"])
    if not len(splits.holdout):
        raise DataError(f"{source} has no hold-out; give more images or data.holdout")
    on_test = settings.split == "test"
    train, holdout = splits.train.own_labels, splits.holdout.own_labels
    measured = splits.test.own_labels if on_test else holdout
    return warn_of_labels(source, train, holdout[:0], measured, splits.classes, settings.split)


def classifier(encoder: Encoder, settings: FinetuneSettings, splits: Splits, session: Session) -> FineTuning:
    """Return the folded encoder with a new head, as a trainable module."""
    classes = len(splits.classes)
    torch.manual_seed(seed_of(session.seed))  # seeds the head
    network = plain_vit(encoder, num_classes=classes, fc_norm=True, drop_path_rate=settings.drop_path).train()
    network.requires_grad_(True)
    mix = Mix(classes, settings.mixup, settings.cutmix, settings.smoothing)
    return FineTuning(network, mix, (0.5,) * 3, (0.5,) * 3).to(session.world.device)


def check_even(batch: int) -> int:
    """Check that images can be mixed in pairs.

    Raises:
        ConfigError: the batch is odd.
    """
    if batch % 2:
        raise ConfigError("train.batch", batch, "must be even: images are mixed in pairs")
    return batch


class HoldOut:
    """Evaluates the accuracy on the hold-out every `every` steps."""

    name = "holdout"

    def __init__(self, module: FineTuning, images: ImageSet, session: Session, every: int):
        self.module, self.images, self.session, self.every = module, images, session, every

    def headline(self, scalars: Mapping[str, float]) -> str:
        """Return a sentence on the accuracy."""
        return f"hold-out accuracy {scalars['accuracy_holdout']:.1f} %"

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {"accuracy_holdout": accuracy_on(self.images, self.module, self.session)}, {}


def accuracy_on(images: ImageSet, module: FineTuning, session: Session) -> float:
    """Return the top-1 accuracy in percent."""
    return 100 * float(correct_on(images, module, session).double().mean())


def correct_on(images: ImageSet, module: FineTuning, session: Session) -> Tensor:
    """Return which images are classified correctly, (N,) bool."""
    workers = session.config["data"]["workers"]
    poll = session.stop.poll if session.world.size == 1 else lambda: None
    return module.correct(in_order(images, 500, session.world.device, workers, poll))


def score(
    module: FineTuning,
    splits: Splits,
    session: Session,
    settings: FinetuneSettings,
    run: Run,
    encoder: Encoder,
    step: int,
    warnings: Sequence[str],
) -> Result:
    """Return the result on the selected split."""
    config = session.config
    holdout = accuracy_on(splits.holdout, module, session)
    images: ImageSet = getattr(splits, settings.split)
    correct = correct_on(images, module, session)
    certain = interval(correct)
    recipe = {key: config[key] for key in ("drop_path", "mixup", "cutmix", "smoothing")}
    is_trained = settings.weights != "untrained"
    vit: Any = module.network  # timm's
    return Result(
        encoder=run.name if is_trained else f"{run.name}'s network, untrained",
        protocol="finetune",
        protocol_source="end to end, adaLN folded; the recipe is under `selected`",
        accuracy=certain.mean,
        split=settings.split,
        images=len(images),
        selected={**recipe, "optim": config["optim"], "augment": config["augment"], "train": config["train"]},
        selected_on="none: nothing was chosen",
        selected_accuracy=holdout,
        layer=encoder.layer,
        t=encoder.t,
        input="clean",
        pooling="mean",
        dimensions=vit.num_features,
        checkpoint=run.checkpoint.hash if is_trained else "none",
        step=step,
        seed=session.seed,
        data=session.parts.data.name,
        data_fingerprint=splits.fingerprint,
        config=json_hash(config),
        commit=commit(),
        command=command(),
        hardware=describe_hardware(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        warnings=warnings,
        correct=pack_correct(correct[None]),
        low=certain.low,
        high=certain.high,
    )

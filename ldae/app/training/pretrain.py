"""Pretrain an encoder: l-DAE, its ablation path, and baselines.

    ldae pretrain experiment=ldae/cifar10_cpu data.root=DIR/cifar10 out=RUN

Keys: experiment= data= data.root= out= seed= train.steps= or train.epochs= train.batch= train.precision=
device= runtime.threads= and every other key of the configs (printed with `--cfg`). The same command again
resumes. `torchrun --nproc_per_node=N -m ldae pretrain ...` divides each batch among N processes.
Exit codes: 0 done, 2 usage, 65 bad data or checkpoint, 70 non-finite or internal, 73 out= unusable, 74 I/O,
75 interrupted and saved.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ldae.app.compose import compose, require, resolved
from ldae.app.overrides import command
from ldae.app.precision import saved_config
from ldae.app.resumption import is_finished, no_start, start_run
from ldae.app.session import Session, loggers_of, settings_of, train_settings
from ldae.app.training.latent_cache import train_images
from ldae.app.training.layer_monitors import FeatureGeometry, LayerMaps, LayerSimilarity
from ldae.app.training.monitors import (
    ONLINE_KNN,
    MonitorSettings,
    OnlineFeatures,
    encoder_of,
    online_probes,
    preview,
    some,
)
from ldae.app.training.overview import overview
from ldae.app.training.tokenizer_cache import check_fit, ensure_tokenizer
from ldae.config.schema import conform
from ldae.core.errors import ConfigError
from ldae.core.files import read_sealed_json
from ldae.data.images import Splits
from ldae.engine.early_stop import EarlyStop
from ldae.engine.run_folder import RunFolder
from ldae.engine.settings import TrainSettings
from ldae.engine.trainer import RunContext, Trainer
from ldae.export.encoder import MODEL, TOKENIZER_FILE, build_untrained
from ldae.objectives.base import PretrainingObjective
from ldae.objectives.denoise import Denoise
from ldae.objectives.panels import build_panels

EARLY = "stopped early at step"  # beginning of the message in status.json


def main(argv: Sequence[str]) -> None:
    """Compose the config of a command line, and pretrain."""
    config = resolved(compose("pretrain", argv))
    require(argv, experiment="ldae/imagefolder_cpu")
    pretrain(config)


def pretrain(config: dict[str, Any]) -> Path:
    """Pretrain an encoder, or continue a run that was stopped.

    Args:
        config: composed from configs/pretrain.yaml, resolved.

    Returns:
        The folder of the run.

    Raises:
        UsageError, ConfigError: a key or value is invalid.
        DataError: the images are missing or damaged.
        Interrupted: a signal came; the run was saved.
    """
    run = RunFolder(Path(config["out"] or default_out(config)), derived=(TOKENIZER_FILE,))
    session = Session(config, saved_config(run.path))
    config = session.config
    conform("latents", config["latents"], Literal["auto", "never"])
    loggers = loggers_of(config)
    settings = train_settings(config)  # build all parts before reading data, so that an invalid key fails at once
    objective = objective_of(session)
    monitor: MonitorSettings = settings_of(config, "monitor", MonitorSettings)
    if objective.tokenizer is not None:
        check_fit(session)
    session.parts.build("optim", "augment")
    with session.running(run):
        if is_finished(run, config) and not has_new_patience(run, config):
            print(f"{run.path} is finished; nothing to do")
            return run.path
        splits = session.splits()
        check_classes(session, splits)
        if isinstance(objective, Denoise):
            session.load_blend_images(objective.corruption)
        write_config = start_run(run, config, splits) if session.world.main else no_start
        step, total = train(session, objective, splits, settings, monitor, run, write_config, loggers)
        if session.world.main:
            early = f"{EARLY} {step} of {total}: the online kNN has not risen for {monitor.patience} evaluations"
            run.set_status("done", step, message=early if step < total else "")
            print(f"done: {run.path}" + (f", {early}" if step < total else ""))
            if len(splits.classes) > 1:
                print(f"  probe it:  {command('probe', run=run.path)}")
            print(f"  curves:  tensorboard --logdir {shlex.quote(str(run.path))}")
    return run.path


def train(
    session: Session,
    objective: PretrainingObjective,
    splits: Splits,
    settings: TrainSettings,
    monitor: MonitorSettings,
    run: RunFolder,
    on_start: Callable[[], None],
    loggers: Sequence[str],
) -> tuple[int, int]:
    """Load or fit the tokenizer, then train the objective on the training images.

    Args:
        session: parts, device and data.
        objective: objective to train.
        splits: images of the data set.
        settings: length and settings of the training.
        monitor: settings of the evaluations.
        run: folder of the run, locked.
        on_start: called before the first step.
        loggers: names of ldae.engine.loggers.

    Returns:
        The number of steps that were made, and the total: early stopping makes fewer.
    """
    config, optim = session.config, session.parts.optim
    tokenizer = None if objective.tokenizer is None else ensure_tokenizer(session, splits, run)
    objective.to(session.world.device)
    images = train_images(session, objective, splits, tokenizer)
    loader = session.loader(images, session.parts.augment, settings.batch)
    total = settings.total_steps(loader.steps_per_epoch)
    record = {
        "config": config,
        "data": splits.fingerprint,
        "tokenizer": tokenizer,
        "peak_rate": optim.peak(settings.batch),
    }
    evaluates = session.world.main or settings.shard
    start = None if settings.shard else partial(build_untrained, config, run.path, tokenizer)
    evaluations = monitors(session, objective, splits, total, monitor, start) if evaluates else []
    if session.world.main:
        print(overview(session, splits, objective, settings, total, run.path), flush=True)
    context = RunContext(
        run,
        session.world,
        record,
        evaluations,
        session.stop,
        session.progress,
        can_shard=True,
        threads=session.threads,
        loggers=loggers,
        on_start=on_start,
        early_stop=early_stop_of(session, splits, total, monitor),
        cache=session.cache,
    )
    trainer = Trainer({MODEL: objective}, loader, optim, settings, session.seed, context)
    trainer.fit()
    return trainer.state.step, total


def has_new_patience(run: RunFolder, config: Mapping[str, Any]) -> bool:
    """Return whether a run was stopped early and `monitor.patience` has changed since, so that it goes on."""
    if not str(run.status().get("message", "")).startswith(EARLY):
        return False
    saved = read_sealed_json(run.path / "config.json")["monitor"]
    return bool(saved.get("patience") != config["monitor"].get("patience"))


def early_stop_of(session: Session, splits: Splits, total: int, settings: MonitorSettings) -> EarlyStop | None:
    """Return the rule of early stopping by the online kNN; None without `monitor.patience`.

    Raises:
        ConfigError: the run has no online kNN.
    """
    if settings.patience is None:
        return None
    if not has_online_knn(session, splits, settings):
        message = "needs the online kNN: images with classes, monitor.num_evals and monitor.knn_images above 0"
        raise ConfigError("monitor.patience", settings.patience, message)
    return EarlyStop(ONLINE_KNN, f"{ONLINE_KNN}_holdout/model", settings.patience, settings.every(total))


def has_online_knn(session: Session, splits: Splits, settings: MonitorSettings) -> bool:
    """Return whether the online kNN is measured: there are evaluations, and classes to tell apart on a hold-out."""
    count = settings.num_evals and settings.bank(session.world.device.type)
    return bool(count and len(splits.holdout) and len(splits.classes) > 1)


def objective_of(session: Session) -> PretrainingObjective:
    """Return the session's objective.

    Raises:
        ConfigError: the objective trains no encoder.
    """
    objective = session.parts.objective
    if not isinstance(objective, PretrainingObjective):
        raise ConfigError("objective", type(objective).__name__, "trains no encoder; use denoise or masked")
    return objective


def default_out(config: dict[str, Any]) -> str:
    """Return the default folder of a run, runs/EXPERIMENT/seedN."""
    return f"runs/{str(config['experiment']).replace('/', '-')}/seed{config['seed']}"


def check_classes(session: Session, splits: Splits) -> None:
    """Check that a class-conditional network has as many classes as the data.

    Raises:
        ConfigError: the numbers differ.
    """
    expected, count = session.parts.task.classes, len(splits.classes)
    if expected and not splits.labelled:
        hint = session.parts.data.label_hint
        raise ConfigError(
            "task.classes", expected, f"is for images with classes, and these have none; {hint}, or task=images"
        )
    if expected and expected != count:
        raise ConfigError(
            "task.classes", expected, f"is not the number of classes of the data; give task.classes={count}"
        )


def monitors(
    session: Session,
    objective: PretrainingObjective,
    splits: Splits,
    total: int,
    settings: MonitorSettings,
    start: Callable[[], PretrainingObjective] | None,
) -> list[Any]:
    """Return the evaluations of a run.

    Args:
        session: device, data and config.
        objective: objective in training.
        splits: images of the data set.
        total: total number of steps of the run.
        settings: number and size of the evaluations.
        start: function that returns the objective before its first step.
    """
    if not settings.num_evals:
        return []
    every = settings.every(total)
    batch = preview(session, splits.holdout if len(splits.holdout) else splits.train, settings.panel_images)
    evaluations: list[Any] = [*build_panels(objective, batch, every, settings.levels)]
    if has_online_knn(session, splits, settings):
        count = settings.bank(session.world.device.type)
        features = OnlineFeatures(session, objective, splits, count, start)
        evaluations += online_probes(features, settings, every)
    encoder = encoder_of(session, objective)
    if settings.geometry_images:
        images = some(splits.train, settings.geometry_images)
        evaluations.append(FeatureGeometry(session, encoder, images, every))
    if settings.cka:
        evaluations.append(LayerSimilarity(encoder, batch, every))
    if settings.maps:
        evaluations.append(LayerMaps(encoder, batch, every))
    return evaluations

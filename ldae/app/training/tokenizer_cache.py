"""Fit and train tokenizers, and cache them in the user's cache."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from ldae.app.compose import compose, resolved
from ldae.app.probing.tables import data_source
from ldae.app.session import Session, train_settings
from ldae.app.training.monitors import preview
from ldae.app.training.overview import overview
from ldae.config.schema import construct
from ldae.core.errors import CheckpointError, ConfigError, DataError, LockedError
from ldae.core.files import has_intact_tensors, json_hash, load_tensors, open_atomic, save_tensors
from ldae.core.rng import permutation
from ldae.core.types import Count, Fraction, Natural, NonNegative
from ldae.data.images import ImageSet, Splits
from ldae.engine.checkpoint import read_latest_record
from ldae.engine.logging import save_png
from ldae.engine.optim import AdamW, Optim
from ldae.engine.run_folder import RunFolder
from ldae.engine.settings import TrainSettings
from ldae.engine.trainer import Monitor, RunContext, Trainer
from ldae.export.encoder import TOKENIZER_FILE
from ldae.nn.perceptual import Perceptual
from ldae.objectives.base import Objective
from ldae.objectives.classify import Classify
from ldae.objectives.panels import FilterPanel, ReconstructionPanel, filter_tiles
from ldae.tokenizers.base import HasBasis, Tokenizer, load_tokenizer, save_tokenizer, varies

PERCEPTUAL_FILE = "perceptual.safetensors"
NUM_EVALS = 8  # evaluations during a tokenizer's training
PANEL_IMAGES = 64


def ensure_tokenizer(session: Session, splits: Splits, run: RunFolder) -> str:
    """Load the session's tokenizer, and copy it into the run folder.

    The source is the run folder, `tokenizer.weights`, the user's cache, or fitting it now.

    Returns:
        SHA-256 of the tokenizer's file.

    Raises:
        CheckpointError: the file in the run folder is damaged, or not that of the run's checkpoints.
    """
    tokenizer: Tokenizer = session.parts.tokenizer
    target, expected = run.path / TOKENIZER_FILE, read_latest_record(run.checkpoints, "tokenizer")
    if not session.world.shared(target.exists()):
        source = configured_weights(session) or _cached_tokenizer(session, splits)
        load_tokenizer(source, tokenizer, expected)
        if session.world.main:
            with open_atomic(target) as copy:
                copy.write(source.read_bytes())
        session.world.wait()
    try:
        digest = load_tokenizer(target, tokenizer, expected)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it, and run the same command again") from None
    tokenizer.to(session.world.device)
    _warn_of_rank(session, tokenizer)
    return digest


def _warn_of_rank(session: Session, tokenizer: Tokenizer) -> None:
    """Print a warning where the training images' patches vary in fewer dimensions than the latent has."""
    if not isinstance(tokenizer, HasBasis):
        return
    d, rank = tokenizer.shape[0], int(varies(tokenizer.basis_variances()).sum())
    if rank < d:
        reason = "every image is the same flat colour" if rank == 0 else "grey or flat pictures have such patches"
        _print_on_main(
            session,
            f"warning: patches of the training images have rank {rank}, fewer than the {d} latent dimensions "
            f"({reason}); the other {d - rank} are 0 in every image",
        )


def configured_weights(session: Session) -> Path | None:
    """Return the file that `tokenizer.weights` names, or None.

    Raises:
        CheckpointError: it is missing.
    """
    weights = session.config["tokenizer"]["weights"]
    if weights is None:
        return None
    path = Path(str(weights)).expanduser()
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"tokenizer.weights={weights} is missing; give a file or folder of ldae train-tokenizer")
    return path


def tokenizer_key(session: Session, splits: Splits) -> str:
    """Return the cache key of a tokenizer: a hash of its config and of its training data."""
    spec = {k: v for k, v in session.config["tokenizer"].items() if k != "weights"}
    seed = session.seed if session.parts.tokenizer.needs_training else 0
    task = [session.config["task"]] if "task" in _fitted_on(session) else []
    return json_hash([spec, session.parts.data.size, splits.fingerprint, seed, *task])[:20]


def _fitted_on(session: Session) -> Sequence[str]:
    """Return the config groups of a tokenizer's training data; the task counts only where x0 is not the image."""
    return ("data", "task") if session.parts.task.channels != 3 else ("data",)


def _cached_tokenizer(session: Session, splits: Splits) -> Path:
    folder = session.cache / "tokenizers" / tokenizer_key(session, splits)
    path = folder / TOKENIZER_FILE
    if not _is_cached(session, path):
        session.writable(folder.parent)
        with _hold(session, RunFolder(folder)) as run:
            if not _is_cached(session, path):  # another run may have written it meanwhile
                sub = Session(tokenizer_config(session))
                sub.stop, sub.world, sub.threads = session.stop, session.world, session.threads
                _print_on_main(
                    session, f"fitting the tokenizer {type(sub.parts.tokenizer).__name__} (cached in {folder})"
                )
                fit_tokenizer(sub, splits, run)
    return path


def _is_cached(session: Session, path: Path) -> bool:
    """Return whether the cache has an intact file of tensors, as the main process sees it."""
    return bool(session.world.shared(session.world.main and has_intact_tensors(path)))


@contextlib.contextmanager
def _hold(session: Session, run: RunFolder) -> Iterator[RunFolder]:
    """Hold a folder of the cache, by the main process for all; wait while another run holds it."""
    waiting = False
    while not session.world.shared(_acquire(session, run)):
        if not waiting:
            _print_on_main(session, f"waiting for another run, which is writing {run.path}")
        waiting = True
        session.stop.poll()
    try:
        yield run
    finally:
        run.release()


def _acquire(session: Session, run: RunFolder) -> bool:
    """Try to lock the folder for a second, and return whether it is locked."""
    try:
        if session.world.main:
            run.acquire()
        return True
    except LockedError:
        return False


def _print_on_main(session: Session, text: str) -> None:
    if session.world.main:
        print(text, file=sys.stderr)


def tokenizer_config(session: Session) -> dict[str, Any]:
    """Return the config of `ldae train-tokenizer` for another session's tokenizer, data and device."""
    root: DictConfig = compose("train_tokenizer", [])
    for group in (*_fitted_on(session), "tokenizer", "seed", "device", "runtime"):
        root[group] = session.config[group]
    return resolved(root)


def classifier_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of `ldae train-tokenizer` for the perceptual loss's classifier on another config's data."""
    root: DictConfig = compose("train_tokenizer", ["tokenizer=vqgan"])
    for group in ("data", "seed", "device", "runtime"):
        root[group] = config[group]
    return resolved(root)


@dataclass(frozen=True)
class FitSettings:
    """Configure the fitting of a tokenizer.

    Attributes:
        images: number of training images for passes without gradients; all if None.
        steps: training steps; 0 for none.
        batch: batch size.
        blr: base learning rate.
        betas: betas of Adam.
        precision: precision of matrix products.
    """

    images: Count | None
    steps: Natural
    batch: Count
    blr: NonNegative
    betas: tuple[Fraction, Fraction]
    precision: Literal["fp32", "bf16"]


def check_fit(session: Session) -> None:
    """Build everything that fits the session's tokenizer, so that mistakes fail before data are read.

    Raises:
        ConfigError: a key of tokenizer.fit is invalid.
    """
    fit = session.config["tokenizer"]["fit"]
    try:
        construct(FitSettings, {field.name: fit[field.name] for field in fields(FitSettings)}, {})
        if session.parts.tokenizer.needs_training and session.config["tokenizer"]["weights"] is None:
            sub = Session(tokenizer_config(session))
            train_settings(sub.config)
            sub.parts.build("objective", "optim")
            if fit["perceptual"] and fit["perceptual"].get("fit"):
                _perceptual_recipe(fit["perceptual"]["fit"])
    except ConfigError as error:
        if error.key.startswith("tokenizer."):
            raise
        key = error.key.removeprefix("train.").removeprefix("optim.")
        raise ConfigError(f"tokenizer.fit.{key}", error.value, error.expectation) from None


def fit_tokenizer(session: Session, splits: Splits, run: RunFolder) -> None:
    """Fit or train the session's tokenizer, and write it and its filters to the run folder."""
    tokenizer: Tokenizer = session.parts.tokenizer.to(session.world.device)
    fit = session.config["tokenizer"]["fit"]
    sample = _sample(splits.train, fit["images"], session.seed)
    images = session.images(sample, title="fitting the tokenizer", as_bytes=tokenizer.fits_bytes)
    tokenizer.fit(images if session.threads is None else session.threads.adapted(images))
    if tokenizer.needs_training and (fit["steps"] or not session.config["tokenizer"]["weights"]):
        settings = train_settings(session.config)
        perceptual = ensure_perceptual(session, splits)
        record = {"config": session.config, "data": splits.fingerprint, "perceptual": perceptual}
        evaluations = _tokenizer_monitors(session, splits, settings) if session.world.main else ()
        _train(session, splits, session.parts.objective, session.parts.optim, settings, run, record, evaluations)
    if tokenizer.needs_training:
        tokenizer.calibrate(session.images(sample, title="measuring the latents"))
    if session.world.main:
        save_png(run.path / "filters.png", filter_tiles(tokenizer))
        spec = {k: v for k, v in session.config["tokenizer"].items() if k != "weights"}
        save_tokenizer(run.path / TOKENIZER_FILE, tokenizer, spec, splits.fingerprint)
    session.world.wait()


def _train(
    session: Session,
    splits: Splits,
    objective: Objective,
    optim: Optim,
    settings: TrainSettings,
    run: RunFolder,
    record: Mapping[str, Any],
    evaluations: Sequence[Monitor] = (),
) -> None:
    title = "classifier" if isinstance(objective, Classify) else "tokenizer"
    job = RunContext(
        run,
        session.world,
        record,
        evaluations,
        session.stop,
        session.progress,
        title,
        threads=session.threads,
        cache=session.cache,
    )
    trainable_modules = {name: module.to(session.world.device) for name, module in objective.trainable_modules.items()}  # type: ignore[attr-defined]
    loader = session.loader(splits.train, session.parts.augment, settings.batch)
    if session.world.main:
        total = settings.total_steps(loader.steps_per_epoch)
        print(overview(session, splits, objective, settings, total, run.path), flush=True)
    Trainer(trainable_modules, loader, optim, settings, session.seed, job).fit()


def _tokenizer_monitors(session: Session, splits: Splits, settings: TrainSettings) -> Sequence[Monitor]:
    tokenizer: Tokenizer = session.parts.tokenizer
    images = preview(session, splits.holdout if len(splits.holdout) else splits.train, PANEL_IMAGES).images
    every = math.ceil((settings.steps or NUM_EVALS) / NUM_EVALS)
    return [FilterPanel(tokenizer), ReconstructionPanel(tokenizer, images, every)]


def ensure_perceptual(
    session: Session,
    splits: Splits,
    alternative: str = "use a tokenizer without it, such as kl_gan or conv_vae",
) -> str | None:
    """Load the perceptual network of a tokenizer's training from the user's cache, or train and cache it.

    Args:
        alternative: advice where the images have no classes to train it on.

    Returns:
        Its cache key; None if the loss has none that is trained on the data's labels.
    """
    perceptual: Perceptual | None = session.parts.perceptual
    if perceptual is None or not perceptual.needs_training:
        return None
    if not splits.labelled:
        raise DataError(
            "the images have no classes, which the classifier of the perceptual loss is trained on; "
            f"{session.parts.data.label_hint}, or {alternative}"
        )
    spec = {k: v for k, v in session.config["perceptual"].items() if k != "factor"}
    key = json_hash([spec, session.parts.data.size, splits.fingerprint, session.seed])[:20]
    folder = session.cache / "perceptual" / key
    if not _is_cached(session, folder / PERCEPTUAL_FILE):
        session.writable(folder.parent)
        _train_perceptual(session, splits, perceptual, spec["fit"], RunFolder(folder))
    perceptual.load_state_dict(load_tensors(folder / PERCEPTUAL_FILE))
    perceptual.to(session.world.device).requires_grad_(False).eval()
    return key


def _train_perceptual(
    session: Session, splits: Splits, perceptual: Perceptual, fit: Mapping[str, Any], run: RunFolder
) -> None:
    labels = splits.train.own_labels
    if labels.min() < 0 or len(labels.unique()) < 2:
        message = (
            f"{data_source(session.config['data'])} has no labels of two classes, on which this classifier is trained"
        )
        raise DataError(f"{message}; give labels, tokenizer.fit.perceptual=null, or features= of a run")
    optim, settings = _perceptual_recipe({**fit, "batch": min(fit["batch"], len(splits.train))})
    data = {"data": splits.fingerprint}
    with _hold(session, run):
        if _is_cached(session, run.path / PERCEPTUAL_FILE):  # another run may have written it meanwhile
            return
        _print_on_main(session, f"training a classifier for the perceptual loss (cached in {run.path})")
        _train(session, splits, Classify(session.parts.task, perceptual), optim, settings, run, data)
        if session.world.main:
            save_tensors(run.path / PERCEPTUAL_FILE, perceptual.state_dict(), data)
        session.world.wait()


def _perceptual_recipe(fit: Mapping[str, Any]) -> tuple[AdamW, TrainSettings]:
    try:
        optim = construct(AdamW, {"blr": fit["blr"], "weight_decay": fit["weight_decay"]}, {})
        settings = construct(TrainSettings, {"ema": 0.0, **{k: fit[k] for k in ("steps", "batch", "precision")}}, {})
    except ConfigError as error:
        raise error.with_prefix("tokenizer.fit.perceptual.fit") from None
    return optim, settings


def _sample(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    if count is None or count >= len(images):
        return images
    return images.subset(permutation(seed, 0, len(images))[:count].sort().values.numpy())

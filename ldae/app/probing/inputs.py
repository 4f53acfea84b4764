"""Open the encoder or feature file of a probe, and the data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldae.app.probing.encoders import (
    BASELINES,
    UNTRAINED,
    ProbedEncoder,
    file_encoder,
    has_weights,
    pca,
    pixels,
    run_encoder,
    timm_encoder,
)
from ldae.app.probing.external import function_encoder, onnx_encoder
from ldae.app.probing.feature_reading import Images
from ldae.app.probing.settings import FIXED_OF_OTHERS, ProbeSettings
from ldae.app.probing.tables import data_source
from ldae.app.session import Session, make_out, prepare_machine, session_of
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash
from ldae.data.images import Splits
from ldae.export.encoder import Run, load_run
from linear_probe.feature_file import read_features
from linear_probe.registry import PROTOCOLS

BATCH, BATCH_OF_GPU = 128, 1024  # larger batches exceed a CPU's caches; a GPU needs them


@dataclass(frozen=True)
class ProbeInputs:
    """Encoders and labels of a probe.

    Attributes:
        encoders: function that yields the probed encoder, then the baselines.
        labels: function from a split to its labels (N,).
        classes: names of the classes.
        data: name of the data set.
        fingerprint: fingerprint of the data set.
        source: the key and value that name the images or features, e.g. `data.root=FOLDER`.
        outliers: name of the data set of `outliers=`; empty if there is none.
        config: hash of the run's config, or of the settings without a run.
        seed: seed of the run.
        out: folder for results and features.
        cache: folder of derived files that are shared by all runs.
        device: type of the device that computes.
    """

    encoders: Callable[[], Iterator[ProbedEncoder]]
    labels: Callable[[str], Tensor]
    classes: Sequence[str]
    data: str
    fingerprint: str
    source: str
    config: str
    seed: int
    out: Path
    cache: Path
    device: str
    outliers: str = ""


@contextlib.contextmanager
def open_inputs(settings: ProbeSettings, config: Mapping[str, Any]) -> Iterator[ProbeInputs]:
    """Load and check the inputs of a probe; signals end the block.

    Raises:
        ConfigError: settings contradict each other.
        CheckpointError, DataError: a file is missing or damaged.
    """
    device = prepare_machine(config)
    config = {**config, "device": device}
    run = load_run(Path(settings.run), settings.step, settings.weights, device) if settings.run else None
    session = open_session(run, config, settings)
    out = Path(settings.out or _default_out(settings, config))
    with session.stop.listening(), session.stop.at_once():
        inputs = _file(settings, session, out) if settings.features else _images(settings, run, session, config, out)
        make_out(out)
        yield inputs


def open_session(run: Run | None, config: Mapping[str, Any], settings: ProbeSettings) -> Session:
    """Return a session with the run's parts and its data, or another data set at the run's image size."""
    if run is not None:
        return session_of(run, config)
    data = {key: value for key, value in config["data"].items() if value is not None}
    if settings.features and "part" in data:
        raise ConfigError("data", data["part"], "is not read with features=FILE; leave it out")
    if not settings.features and "part" not in data:
        raise ConfigError("data", None, "is not set; name the images, e.g. data=cifar10 data.root=FOLDER")
    shared = {key: config[key] for key in ("device", "runtime")}
    return Session({"seed": config["seed"], "allow": [], **shared, "data": data})


def _default_out(settings: ProbeSettings, config: Mapping[str, Any]) -> Path:
    """Return the default output folder: RUN/probe, or a folder named after encoder and data."""
    data = config["data"]
    other = f"{data['part'].rsplit('.', 1)[-1].lower()}{data['classes']}" if "part" in data else ""
    if settings.run:
        return Path(settings.run) / "probe" / other
    whose = settings.timm or settings.onnx or settings.function or settings.features or settings.baseline or ""
    random = "-random" if settings.timm and not settings.checkpoint and ":" not in settings.timm else ""
    name = Path(whose).stem if settings.features or settings.onnx else Path(whose.split(":")[-1]).name
    return Path("runs/probe") / f"{name}{random}{'-' if other else ''}{other}"


def _file(settings: ProbeSettings, session: Session, out: Path) -> ProbeInputs:
    path = Path(settings.features or "").expanduser()
    if settings.corruptions:
        raise ConfigError(
            "corruptions", settings.corruptions, "corrupts images, and features=FILE has none; leave it out"
        )
    for key, usual in FIXED_OF_OTHERS.items():
        if getattr(settings, key) != usual:
            raise ConfigError(
                key, getattr(settings, key), "was fixed when the file of features was written; leave it out"
            )
    try:
        file = read_features(path)
    except OSError as error:
        raise DataError(f"features={path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"features={path} {error}") from None
    encoder = file_encoder(path.stem, file)
    return ProbeInputs(
        lambda: iter([encoder]),
        lambda split: file.splits[split].y,
        [str(i) for i in range(file.classes)],
        path.stem,
        file.fingerprint,
        f"features={path}",
        json_hash({"features": file.hash}),
        settings.seed,
        out,
        session.cache,
        session.world.device.type,
    )


def _images(
    settings: ProbeSettings, run: Run | None, session: Session, config: Mapping[str, Any], out: Path
) -> ProbeInputs:
    other, outliers = _outliers(settings, session, config.get("outliers"))
    splits: Splits = session.splits(labels_for="probing")
    images = Images(session, splits, out, batch_size(settings, session), settings.seed, outliers)
    others = {key: getattr(settings, key) for key in ("onnx", "function") if getattr(settings, key)}
    description = {"timm": settings.timm, "size": settings.size, **others, "data": session.config["data"]}
    return ProbeInputs(
        lambda: encoders_of(settings, run, images),
        lambda split: images.split(split).own_labels,
        splits.classes,
        session.parts.data.name,
        splits.fingerprint,
        data_source(session.config["data"]),
        json_hash(run.config if run else description),
        run.config["seed"] if run else settings.seed,
        out,
        session.cache,
        session.world.device.type,
        other,
    )


def _outliers(settings: ProbeSettings, session: Session, config: Mapping[str, Any] | None) -> tuple[str, Splits | None]:
    """Return name and splits of the data set of `outliers=`, at the size of the scored images, if a protocol needs it.

    Raises:
        ConfigError: a protocol needs outliers and none are given, or the other way round.
        DataError: it has no test images.
    """
    need = [name for name in settings.protocols if PROTOCOLS[name].needs_outliers]
    if need and not config:
        raise ConfigError(
            "outliers", None, f"is not set; protocol {need[0]} needs another data set, e.g. outliers=photos"
        )
    if not config:
        return "", None
    if not need:
        name = config["part"].rsplit(".", 1)[-1].lower()
        raise ConfigError("outliers", name, "is used by protocols=[ood_knn,ood_energy]; add them, or leave it out")
    group = {**config, "size": session.config["data"]["size"]}
    other = Session({**session.config, "outliers": group})
    splits = other.splits("outliers")
    if not len(splits.test):
        raise DataError(f"outliers: {other.parts.outliers.name} has no test images; name a set that has some")
    return other.parts.outliers.name, splits


def batch_size(settings: ProbeSettings, session: Session) -> int:
    """Return the number of images per forward pass: the settings', or one that suits the device."""
    return settings.batch or (BATCH if session.world.device.type == "cpu" else BATCH_OF_GPU)


def encoders_of(settings: ProbeSettings, run: Run | None, images: Images) -> Iterator[ProbedEncoder]:
    """Yield the probed encoder, then the baselines."""
    if settings.baseline is not None and settings.baseline in BASELINES:
        yield BASELINES[settings.baseline](images)
        return
    if settings.baseline != "untrained":
        yield _probed(settings, run, images)
    if settings.baselines or settings.baseline:
        yield from _untrained(settings, run, images)
    if settings.baselines and not settings.baseline:
        yield pixels(images)
        yield pca(images)


def _probed(settings: ProbeSettings, run: Run | None, images: Images) -> ProbedEncoder:
    if settings.onnx:
        return onnx_encoder(images, settings)
    if settings.function:
        return function_encoder(images, settings)
    if run is None:
        return timm_encoder(images, settings, images.session.device)
    return run_encoder(run.name, run, images, settings)


def _untrained(settings: ProbeSettings, run: Run | None, images: Images) -> Iterator[ProbedEncoder]:
    """Yield the same network with random weights, unless the probed one is random already."""
    if run is None:
        if settings.timm and (settings.baseline or has_weights(settings)):
            yield timm_encoder(images, settings, images.session.device, trained=False)
        return
    yield run_encoder(UNTRAINED, run.untrained(), images, settings, trained=False)

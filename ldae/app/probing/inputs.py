"""From settings to subjects: opens the run, the network or the file that is probed, and the data."""

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
    encoder_of_file,
    encoder_of_run,
    encoder_of_timm,
    pca,
    pixels,
)
from ldae.app.probing.feature_reading import Images
from ldae.app.probing.settings import ProbeSettings
from ldae.app.probing.tables import place_of
from ldae.app.session import Session, make_out, prepare_machine, session_of
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash
from ldae.data.images import Splits
from ldae.export.encoder import Run, load_run
from linear_probe.feature_file import read_features

BATCH, BATCH_OF_GPU = 128, 1024  # a CPU's caches hold no more activations; a GPU wants more


@dataclass(frozen=True)
class ProbeInputs:
    """What is scored.

    Attributes:
        subjects: one after the other, what was asked for first.
        labels: of a split, (N,).
        classes: their names.
        data, fingerprint: of the data set.
        place: the key and value that name the images or features, e.g. `data.root=FOLDER`.
        config: hash of the run's config, or of what stands for it.
        seed: of the run.
        out: folder for results and features.
    """

    encoders: Callable[[], Iterator[ProbedEncoder]]
    labels: Callable[[str], Tensor]
    classes: Sequence[str]
    data: str
    fingerprint: str
    place: str
    config: str
    seed: int
    out: Path


@contextlib.contextmanager
def open_inputs(settings: ProbeSettings, config: Mapping[str, Any]) -> Iterator[ProbeInputs]:
    """Loads and checks; listens to signals while the block lasts.

    Raises:
        ConfigError: what is asked for does not fit together.
        CheckpointError, DataError: a file is missing or damaged.
    """
    device = prepare_machine(config)
    config = {**config, "device": device}
    run = load_run(Path(settings.run), settings.step, settings.weights, device) if settings.run else None
    session = _session(run, config, settings)
    out = Path(settings.out or _usual_out(settings, config))
    with session.stop.listening(), session.stop.at_once():
        inputs = _file(settings, config, out) if settings.features else _images(settings, run, session, out)
        make_out(out)
        yield inputs


def _session(run: Run | None, config: Mapping[str, Any], settings: ProbeSettings) -> Session:
    """The run's parts and data; other data where a set is named, of the run's size."""
    own = {key: value for key, value in config["data"].items() if value is not None}
    named = "part" in own
    shared = {key: config[key] for key in ("device", "runtime")}
    if settings.features and named:
        raise ConfigError("data", own["part"], "is not read with features=FILE; leave it out")
    if run is None and not (named or settings.features):
        raise ConfigError("data", None, "is not set; name the images, e.g. data=cifar10 data.root=FOLDER")
    if run is None:
        return Session({"seed": config["seed"], "allow": [], **shared, "data": own})
    if not named:
        return session_of(run, config)
    return Session({**run.config, **shared, "data": {**own, "size": run.config["data"]["size"]}})


def _usual_out(settings: ProbeSettings, config: Mapping[str, Any]) -> Path:
    """RUN/probe; elsewhere a folder that says what is probed, and what data it is not usually probed on."""
    data = config["data"]
    other = f"{data['part'].rsplit('.', 1)[-1].lower()}{data['classes']}" if "part" in data else ""
    if settings.run:
        return Path(settings.run) / "probe" / other
    whose = settings.timm or settings.features or settings.baseline or ""
    random = "-random" if settings.timm and not settings.checkpoint and ":" not in settings.timm else ""
    name = Path(whose).stem if settings.features else Path(whose.split(":")[-1]).name
    return Path("runs/probe") / f"{name}{random}{'-' if other else ''}{other}"


def _file(settings: ProbeSettings, config: Mapping[str, Any], out: Path) -> ProbeInputs:
    path = Path(settings.features or "").expanduser()
    for key, usual in (("layers", None), ("t", None), ("inputs", ["clean"]), ("pooling", ["mean"])):
        if getattr(settings, key) != usual:
            raise ConfigError(
                key, getattr(settings, key), "was decided when the file of features was made; leave it out"
            )
    try:
        file = read_features(path)
    except OSError as error:
        raise DataError(f"features={path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"features={path} {error}") from None
    encoder = encoder_of_file(path.stem, file)
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
    )


def _images(settings: ProbeSettings, run: Run | None, session: Session, out: Path) -> ProbeInputs:
    splits: Splits = session.splits(labels_for="probing")
    batch = settings.batch or (BATCH if session.world.device.type == "cpu" else BATCH_OF_GPU)
    images = Images(session, splits, out, batch, settings.seed)
    known = {"timm": settings.timm, "size": settings.size, "data": session.config["data"]}
    return ProbeInputs(
        lambda: _subjects(settings, run, images),
        lambda split: images.split(split).own_labels,
        splits.classes,
        session.parts.data.name,
        splits.fingerprint,
        place_of(session.config["data"]),
        json_hash(run.config if run else known),
        run.config["seed"] if run else settings.seed,
        out,
    )


def _subjects(settings: ProbeSettings, run: Run | None, images: Images) -> Iterator[ProbedEncoder]:
    """What was asked for first, then the floors."""
    if settings.baseline is not None and settings.baseline in BASELINES:
        yield BASELINES[settings.baseline](images)
        return
    if settings.baseline != "untrained":
        yield _asked(settings, run, images)
    if settings.baselines or settings.baseline:
        yield from _untrained(settings, run, images)
    if settings.baselines and not settings.baseline:
        yield pixels(images)
        yield pca(images)


def _asked(settings: ProbeSettings, run: Run | None, images: Images) -> ProbedEncoder:
    if run is None:
        return encoder_of_timm(images, settings, images.session.device)
    return encoder_of_run(run.name, run, images, settings)


def _untrained(settings: ProbeSettings, run: Run | None, images: Images) -> Iterator[ProbedEncoder]:
    """The same network with random weights; nothing where the one asked for is random already."""
    if run is None:
        if settings.checkpoint:
            yield encoder_of_timm(images, settings, images.session.device, trained=False)
        return
    random = load_run(Path(settings.run or ""), settings.step, "untrained", images.session.device)
    yield encoder_of_run(UNTRAINED, random, images, settings, trained=False)

"""Write the features of every image of a data set to a file, with paths, splits and labels.

    ldae embed run=RUN out=features.npz                                # the images of the run
    ldae embed run=RUN data=imagefolder data.root=FOLDER out=features.parquet
    ldae embed run=RUN layer=4 t=[10,60] combine=concat out=features.npz
    ldae embed encoder=ldae-128x8-cifar10 data=cifar10 data.root=DIR/cifar10 out=features.npz
    ldae embed encoder=timm:vit_base_patch16_224.mae@FILE data=imagefolder data.root=FOLDER out=features.npz

Without layer= and t=, reads the layer and the step that the run's probe selected (RUN/probe), else the end of the
encoder at t = 10. FILE.npz holds train_x (N, D), train_y (N,), train_path (N,), the same of holdout and test, and
`ldae probe features=FILE.npz` reads it. FILE.parquet has the columns path, split, label and features. Images need no
classes: the labels are then left out, or null. The images are encoded in batches and never lie in memory together;
the file appears when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldae.app.compose import compose, resolved
from ldae.app.overrides import argument
from ldae.app.overrides import command as command_of
from ldae.app.precision import announce, settle_precision
from ldae.app.probing.encoders import ProbedEncoder
from ldae.app.probing.feature_reading import SPLITS, Images, numbered
from ldae.app.probing.feature_writers import NPZ, Piece, check_file, checked, open_writer
from ldae.app.probing.inputs import batch_size, encoders_of, open_session
from ldae.app.probing.selection import read_at
from ldae.app.probing.settings import ProbeSettings
from ldae.app.probing.suites import encoder_argv
from ldae.app.provenance import command
from ldae.app.session import prepare_machine, root_settings
from ldae.core.errors import ConfigError
from ldae.core.types import Count, Natural
from ldae.export.encoder import Run, load_run
from linear_probe.features import FeatureKey


@dataclass(frozen=True)
class EmbedSettings:
    """Configure the features that are written, and the file.

    Attributes:
        run: folder of a pretraining run.
        encoder: any other encoder, as in `ldae benchmark`.
        step: step of the run's checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        layer: layer to read; if None, the one that the run's probe selected, or the end of the encoder.
        t: diffusion step, or several that `combine` joins; if None, as `layer`.
        combine: `concat` or `mean` makes one vector of the features at all steps of `t`.
        input: `clean` or `noised`.
        pooling: reduction of the tokens to one vector: a name of linear_probe.pooling.
        out: file to write, .npz or .parquet.
        seed: seed of input noise and of random weights.
        batch: images per forward pass; 128 on a CPU, 1024 on a GPU if None.
        precision: precision of the network's matrix products.
    """

    run: str | None
    encoder: str | None
    step: Natural | None
    weights: Literal["ema", "model"]
    layer: Count | None
    t: Natural | list[Natural] | None
    combine: Literal["concat", "mean"] | None
    input: Literal["clean", "noised"]
    pooling: str
    out: str | None
    seed: Natural
    batch: Count | None
    precision: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        if (self.run is None) == (self.encoder is None):
            message = "give one of run=RUN and encoder=ENCODER (of the package, timm:NAME@FILE, folder of an export)"
            raise ConfigError("run", self.run, f"with encoder={self.encoder}: {message}")
        if len(self.steps or ()) > 1 and not self.combine:
            raise ConfigError(
                "t", self.t, "are several steps; join them by combine=concat or combine=mean, or give one"
            )
        if self.out is None:
            raise ConfigError("out", None, "is not set; give a file, e.g. out=features.npz")
        check_file(Path(self.out).expanduser())

    @property
    def steps(self) -> list[int] | None:
        """Return the diffusion steps to read; None for the default."""
        return [self.t] if isinstance(self.t, int) else self.t


def main(argv: Sequence[str]) -> None:
    """Run `ldae embed`."""
    config, precision = settle_precision(resolved(compose("embed", argv)))
    settings: EmbedSettings = root_settings(EmbedSettings, config)
    probe_config = _probe_config(settings, config)
    announce(precision)
    config = {**config, "device": prepare_machine(config)}
    run = None
    if probe_config["run"]:
        run = load_run(Path(probe_config["run"]), settings.step, settings.weights, config["device"])
        probe_config |= _read_at(run, Path(probe_config["run"]), settings)
    probe: ProbeSettings = root_settings(ProbeSettings, probe_config)
    session = open_session(run, config, probe)
    out = Path(settings.out or "").expanduser()
    with session.stop.listening(), session.stop.at_once(), tempfile.TemporaryDirectory() as cache:
        splits = session.splits()
        images = Images(session, splits, Path(cache), batch_size(probe, session), settings.seed)
        encoder = _encoder(settings, probe, run, images)
        key = encoder.feature_keys[-1]  # of timm the last layer, of the PCA the widest
        sizes = {split: len(images.split(split)) for split in SPLITS}
        texts = {"fingerprint": splits.fingerprint, "encoder": encoder.name, "feature_key": str(key)}
        texts |= {"checkpoint": encoder.checkpoint, "command": command()}
        with open_writer(out, splits.classes, **texts) as writer:
            for split, size in sizes.items():
                if size:
                    writer.write_split(split, size, _pieces(encoder, images, split, key))
    counts = ", ".join(f"{size:,} of {split}" for split, size in sizes.items() if size)
    print(f"{out}: features of {encoder.name} at {key}; images: {counts}")
    if splits.labelled and out.suffix == NPZ and all(sizes.values()):
        print(f"  probe it:  {command_of('probe', features=out)}")


def _probe_config(settings: EmbedSettings, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a probe that reads the encoder with these settings."""
    try:
        chosen = [argument("run", settings.run)] if settings.run else encoder_argv(settings.encoder or "")[0]
    except ConfigError as error:
        raise ConfigError("encoder", error.value, error.expectation) from None
    given: dict[str, Any] = {"layers": [settings.layer] if settings.layer else None, "t": settings.steps}
    given |= {"inputs": [settings.input], "pooling": [settings.pooling]}
    same = ("step", "weights", "combine", "seed", "batch", "precision")
    composed = resolved(compose("probe", chosen))
    return {**composed, **given, **{key: config[key] for key in same}}


def _read_at(run: Run, folder: Path, settings: EmbedSettings) -> dict[str, Any]:
    """Return the keys `layers` and `t` of the probe: one layer, and the steps or None for the default."""
    steps = settings.steps
    layer, t = settings.layer, None if steps is None else steps[0]
    if len(steps or ()) < 2:
        layer, t = read_at(folder, run.checkpoint.hash, layer, t, settings.input, settings.pooling)
        steps = None if t is None else [t]
    return {"layers": [layer or run.objective.network.encoder_layer], "t": steps}


def _encoder(settings: EmbedSettings, probe: ProbeSettings, run: Run | None, images: Images) -> ProbedEncoder:
    """Return the encoder of the settings, with the features to write as its last feature key.

    Raises:
        ConfigError: there is none of this name, or it has no layers or noise levels to choose.
    """
    try:
        encoder = next(encoders_of(probe, run, images))
    except ConfigError as error:
        raise ConfigError({"timm": "encoder"}.get(error.key, error.key), error.value, error.expectation) from None
    if not encoder.feature_keys[-1].layer:
        for name in ("layer", "t", "combine"):
            if getattr(settings, name) is not None:
                raise ConfigError(name, getattr(settings, name), f"is of a network; leave it out for {encoder.name}")
    return encoder


def _pieces(encoder: ProbedEncoder, images: Images, split: str, key: FeatureKey) -> Iterator[Piece]:
    """Yield the features of a split in its order."""
    assert encoder.encode is not None, "only a file of features has none"
    encode, of_split = encoder.encode[0], images.split(split)
    root = images.session.config["data"].get("root")
    below = os.path.relpath(of_split.root, root) if root else "."
    prefix = "" if below.startswith((".", os.sep)) else below
    for batch in images.with_progress(of_split, split):
        x = encode(numbered(batch, split), [key])[key].float().cpu().numpy()
        paths = [os.path.join(prefix, of_split.name(int(i))) for i in batch.index]
        readable = [os.fsencode(path).decode(errors="replace") for path in paths]
        yield Piece(checked(x, key), batch.labels.cpu().numpy(), readable)

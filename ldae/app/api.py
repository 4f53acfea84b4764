"""Provide the Python API: pretrain, open runs, read their metrics and pictures, load encoders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ldae.app.compose import compose, resolved
from ldae.app.overrides import argument
from ldae.app.training.pretrain import pretrain as run_pretraining
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import read_sealed_json
from ldae.export.encoder import Encoder
from ldae.export.encoder import load_encoder as load_from_run
from ldae.export.timm_encoder import TimmEncoder
from ldae.export.zoo import zoo_names


class Run:
    """Pretraining run on disk.

    Args:
        path: the folder that pretraining wrote.

    Attributes:
        config: the resolved config of the run.

    Raises:
        CheckpointError: the folder holds no run.

    Example:
        >>> run = ldae.pretrain("ldae/digits", out="runs/digits")
        >>> run.metrics()["loss"][-1]
        >>> features = run.encoder()(images)  # (B, 3, H, W) in [0, 1] -> (B, D)
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise CheckpointError(f"run={self.path} holds no run; give the folder that pretraining wrote (out=)")
        self.config: dict[str, Any] = read_sealed_json(self.path / "config.json")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def encoder(self, step: int | None = None, device: str = "cpu", **settings: Any) -> Encoder:
        """Return the trained encoder, in eval mode.

        Args:
            step: of the checkpoint; the newest if None.
            device: for example `cpu` or `cuda`.
            settings: `layer`, `t`, `noised`, `precision`, `seed` of Encoder.

        Raises:
            CheckpointError: the run has no whole checkpoint.
        """
        return load_from_run(self.path, step, device, **settings)

    def metrics(self) -> dict[str, list[float]]:
        """Return the metrics that were logged during training.

        Returns:
            {name: values in the order of the steps}, with the steps of `loss` under `step`; metrics of an evaluation
            are under `EVALUATION/NAME`, its steps under `EVALUATION/step`.
        """
        series: dict[str, list[float]] = {}
        for row in self._rows():
            prefix = f"{row['monitor']}/" if "monitor" in row else ""
            for key, value in row.items():
                if isinstance(value, (int, float)):
                    series.setdefault(prefix + key, []).append(value)
        return series

    def panel(self, name: str | None = None) -> Image.Image:
        """Return the newest picture that was drawn during training: by default clean | noised | denoised images.

        Args:
            name: stem of a file in the run's folder `pictures`.

        Raises:
            CheckpointError: the run drew no such picture.
        """
        pictures = {path.stem: path for path in sorted((self.path / "pictures").rglob("*.png"))}
        preferred = [key for key in pictures if "denoised" in key or "masked" in key or "hidden" in key]
        key = name or next(iter([*preferred, *pictures]), None)
        if key not in pictures:
            names = ", ".join(pictures) or "none; pretrain with monitor.num_evals=1 or more"
            raise CheckpointError(f"run={self.path} has no picture {name or ''}; there are: {names}")
        return Image.open(pictures[str(key)]).convert("RGB")

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        path = self.path / "metrics.jsonl"
        if path.is_file():
            yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)


def pretrain(experiment: str, **overrides: Any) -> Run:
    """Pretrain an encoder, or continue a run that was stopped: the same as the command `ldae pretrain`.

    Args:
        experiment: name of an experiment, e.g. `ldae/cifar10_cpu` (`ldae list experiments` shows all).
        overrides: keys of the config. A nested key is a mapping, `train={"steps": 200}`, or a dotted key,
            `**{"train.steps": 200}`.

    Returns:
        The finished run.

    Raises:
        UsageError, ConfigError: a key or value is invalid.
        DataError: the images are missing or damaged.
        Interrupted: a signal came; the run was saved.

    Example:
        >>> run = ldae.pretrain("ldae/digits", out="runs/digits", train={"steps": 200})
    """
    argv = [f"experiment={experiment}", *(_word(key, value) for key, value in _flat(overrides))]
    return Run(run_pretraining(resolved(compose("pretrain", argv))))


def load_encoder(
    source: Path | str, step: int | None = None, device: str = "cpu", **settings: Any
) -> Encoder | TimmEncoder:
    """Load a trained encoder, in eval mode; its `image_shape` is the shape of the images that it takes.

    Args:
        source: folder of a pretraining run, or the name of an encoder that ships with the package (`ldae list
            encoders`), which resizes images of other shapes.
        step: of the checkpoint; the newest if None.
        device: for example `cpu` or `cuda`.
        settings: `layer`, `t`, `noised`, `precision`, `seed` of Encoder; of an encoder that ships, `precision` alone.

    Raises:
        CheckpointError: there is no run, or it has no whole checkpoint.
        ConfigError: an encoder that ships has no such setting.

    Example:
        >>> encoder = ldae.load_encoder("runs/digits")
        >>> features = encoder(images)  # (B, 3, H, W) in [0, 1] -> (B, D)
        >>> encoder = ldae.load_encoder("ldae-128x8-cifar10")
    """
    if source in zoo_names():
        given = settings if step is None else {**settings, "step": step}
        for key in given.keys() - {"precision"}:
            raise ConfigError(key, given[key], f"is fixed in {source}; leave it out")
        return TimmEncoder(str(source), **settings).to(device)
    if not Path(source).expanduser().is_dir():
        shipped = ", ".join(zoo_names())
        message = f"is no folder; give the folder that pretraining wrote (out=), or one of {shipped}"
        raise CheckpointError(f"{source} {message}")
    return load_from_run(Path(source).expanduser(), step, device, **settings)


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested mappings."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _word(key: str, value: Any) -> str:
    """Return KEY=VALUE as the command line has it."""
    return argument(key, value) if isinstance(value, (str, Path)) else f"{key}={json.dumps(value)}"

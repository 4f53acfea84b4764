"""Provide the Python API: pretrain, open runs, read their metrics and pictures, load encoders and generators."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ldae.app.compose import compose, resolved
from ldae.app.export import main as export
from ldae.app.overrides import arguments
from ldae.app.sampling.image_generator import ImageGenerator
from ldae.app.training.pretrain import pretrain as run_pretraining
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import read_sealed_json
from ldae.export.encoder import Encoder
from ldae.export.encoder import load_encoder as load_from_run
from ldae.export.hub import check_remote, download, is_remote, upload
from ldae.export.timm import WEIGHTS
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

    def push_to_hub(self, remote: str, private: bool = False, **settings: Any) -> str:
        """Export the encoder and upload it: see `push_to_hub`."""
        return push_to_hub(self, remote, private, **settings)

    def generator(
        self, step: int | None = None, weights: Literal["ema", "model"] = "ema", device: str = "auto"
    ) -> ImageGenerator:
        """Return the trained diffusion model, as `load_generator`.

        Raises:
            CheckpointError: the run has no whole checkpoint.
            ConfigError: the run is of no diffusion model.
        """
        return ImageGenerator(self.path, step, weights, device)

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
    argv = [f"experiment={experiment}", *arguments(overrides)]
    return Run(run_pretraining(resolved(compose("pretrain", argv))))


def push_to_hub(source: Run | Path | str, remote: str, private: bool = False, **settings: Any) -> str:
    """Upload an encoder to the Hugging Face hub as timm reads it: safetensors, JSON and a model card.

    Args:
        source: a run, its folder, or a folder that `ldae export` wrote with format=[timm].
        remote: repository USER/NAME, made if there is none, or file:///FOLDER.
        private: make a new repository private.
        settings: of the export of a run: `layer`, `t`, `step`, `weights`, `half`.

    Returns:
        The address that `load_encoder` takes.

    Raises:
        CheckpointError: the source is neither a run nor an export.
        ConfigError: a setting or the remote is invalid, or there is no token.
        StorageError: the hub cannot be reached, or refuses.

    Example:
        >>> ldae.push_to_hub("runs/digits", "user/ldae-digits")
        >>> encoder = ldae.load_encoder("hf://user/ldae-digits")
    """
    folder = source.path if isinstance(source, Run) else Path(source).expanduser()
    if (folder / WEIGHTS).is_file():
        for key in settings:
            raise ConfigError(key, settings[key], "is of the export of a run, and this folder is an export already")
        return upload(folder, remote, private)
    check_remote("remote", remote)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "export"
        export(list(arguments({"run": folder, "out": out, **settings})))
        return upload(out, remote, private)


def load_generator(
    run: Path | str,
    step: int | None = None,
    weights: Literal["ema", "model"] = "ema",
    device: str = "auto",
    progress: bool = False,
) -> ImageGenerator:
    """Load a trained diffusion model, which samples, restores and edits images.

    Args:
        run: folder of a pretraining run.
        step: step of the checkpoint; the newest if None.
        weights: `ema` for the averaged weights, `model` for those of the last step.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        progress: draw a progress bar.

    Raises:
        CheckpointError: there is no run, or it has no whole checkpoint.
        ConfigError: the run is of no diffusion model.

    Example:
        >>> generator = ldae.load_generator("runs/ddpm")
        >>> images = generator.sample(64, sampler="ddim", steps=50)  # (64, H, W, 3) uint8
        >>> edited = generator.edit(images, t0=0.5)
    """
    return ImageGenerator(run, step, weights, device, progress)


def load_encoder(
    source: Path | str, step: int | None = None, device: str = "cpu", **settings: Any
) -> Encoder | TimmEncoder:
    """Load a trained encoder, in eval mode; its `image_shape` is the shape of the images that it takes.

    Args:
        source: folder of a pretraining run, or the name of an encoder that ships with the package (`ldae list
            encoders`), which resizes images of other shapes; or hf://USER/NAME of the Hugging Face hub, and
            file:///FOLDER, which `push_to_hub` wrote, or the folder of an export.
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
    local = download(str(source)) if is_remote(source) else Path(source).expanduser()
    if source in zoo_names() or (local / WEIGHTS).is_file():
        given = settings if step is None else {**settings, "step": step}
        for key in given.keys() - {"precision"}:
            raise ConfigError(key, given[key], f"is fixed in {source}; leave it out")
        name = str(source) if source in zoo_names() else f"local-dir:{local}"
        return TimmEncoder(name, **settings).to(device)
    if not local.is_dir():
        shipped = ", ".join(zoo_names())
        message = f"is no folder; give the folder that pretraining wrote (out=), or one of {shipped}"
        raise CheckpointError(f"{source} {message}")
    return load_from_run(local, step, device, **settings)

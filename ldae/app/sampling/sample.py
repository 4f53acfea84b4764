"""Sample images from a trained diffusion model.

    ldae sample run=RUN
    ldae sample run=RUN sampler=ddim spacing=quadratic spacing.count=50 count=1000
    ldae sample run=RUN classes=[3] guidance=1.5
    ldae sample run=SR3_RUN low=RUN/samples/samples.npz        # a cascade

Writes OUT/grid.png (the first 64 samples, or a column for each of up to ten classes), OUT/samples.npz (arr_0: (N, H, W,
3) uint8; arr_1: class labels of a conditional model) and OUT/samples.json (settings, checkpoint, scores). The same
command again resumes; `torchrun --nproc_per_node=N -m ldae sample ...` divides the samples among processes. A sample
depends on the seed and its index alone.
"""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, saved_config, settle_precision
from ldae.app.provenance import version
from ldae.app.resumption import is_finished
from ldae.app.sampling.animation import Animation
from ldae.app.sampling.distances import Reader, caveats, check_count, compare_sets, reader_of
from ldae.app.sampling.generator import generator_of, provenance_of
from ldae.app.sampling.grid import class_names, grid
from ldae.app.sampling.images import files_of, picture
from ldae.app.session import Session, result_folder, root_settings, session_of
from ldae.config.build import Parts
from ldae.core.errors import ConfigError, DataError
from ldae.core.files import has_intact_tensors, load_tensors, open_atomic, save_tensors, write_json, write_sealed_json
from ldae.core.pixels import to_floats
from ldae.core.progress import Progress
from ldae.core.types import BatchGenerator, Cond, Count, Natural
from ldae.data.images import Splits
from ldae.diffusion.corruptions.base import Corruption, Mixed, State
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.initial_states import CoarseMixture, InitialState, StyledSignal
from ldae.diffusion.samplers import Cold
from ldae.diffusion.trajectory import SamplingStep
from ldae.engine.logging import save_png
from ldae.engine.run_folder import RunFolder
from ldae.objectives.panels import to_rgb
from ldae.sampling.generate import Generator
from ldae.sampling.mixture import fit_mixture
from ldae.tasks.super_resolution import SuperResolution

IMAGES = "images"  # tensor of a batch that is kept until all are drawn


@dataclass(frozen=True)
class SampleSettings:
    """Configure sampling: the number of images, their conditions and their evaluation.

    Attributes:
        count: number of images; with `low`, the number of its images.
        batch: images per forward pass.
        classes: class labels to condition on, in turn; all classes in turn if None.
        low: low-resolution images for a super-resolution run: an .npz of `ldae sample`, or a folder of pictures.
        gif: write an animation of the first trajectories.
        features: feature extractor of the distances to the training set: classifier, inception, a shipped
            encoder, or the folder of a run; none are measured if None.
    """

    count: Count
    batch: Count
    classes: list[Natural] | None
    low: str | None
    gif: bool
    features: str | None

    def __post_init__(self) -> None:
        if self.features and not self.low:
            check_count("count", self.count)


def main(argv: Sequence[str]) -> None:
    """Run `ldae sample`."""
    composed = resolved(compose("sample", argv))
    folder = result_folder(composed, "samples")
    config, precision = settle_precision(composed, saved_config(folder.path))
    settings: SampleSettings = root_settings(SampleSettings, config)
    generator, run = generator_of(config)
    conditions = conditions_of(generator, settings)
    check_init(generator, config)
    session = session_of(run, config)
    with session.running(folder):
        generator.objective.to(session.world.device)
        record = {"version": version(), **config, "checkpoint": run.checkpoint.hash}
        if is_finished(folder, record):
            print(f"{folder.path} is finished; nothing to do")
            return
        announce(precision)
        if session.world.main:
            write_sealed_json(folder.path / "config.json", record)
            (folder.path / "shards").mkdir(exist_ok=True)
        session.world.wait()
        generator.init = initial_state(generator, config, session)
        comparison = Comparison.of(settings.features, session) if settings.features else None
        sampling = Sampling(generator, conditions, settings, folder, session, comparison)
        sampling.draw_all()
        session.world.wait()
        if session.world.main:
            sampling.finish(provenance_of(config, run), class_names(Path(str(config["run"]))))
            folder.set_status("done", conditions.count)
            print(f"done: {folder.path}\n  pictures: {folder.path / 'grid.png'}")


@dataclass(frozen=True)
class Conditions:
    """Conditions of the samples.

    Attributes:
        count: number of images.
        labels: (count,) int64, or None.
        low: low-resolution images (count, 3, h, w) in [-1, 1], or None.
    """

    count: int
    labels: Tensor | None = None
    low: Tensor | None = None

    def of(self, index: range, device: torch.device) -> Cond | None:
        """Return the condition of the images at `index`."""
        rows = slice(index.start, index.stop)
        labels, low = (None if x is None else x[rows].to(device) for x in (self.labels, self.low))
        return None if labels is None and low is None else Cond(labels, low)


def conditions_of(generator: Generator, settings: SampleSettings, low: Tensor | None = None) -> Conditions:
    """Return the conditions of the samples.

    Args:
        generator: a trained denoiser.
        settings: settings of the command.
        low: low-resolution images (N, 3, h, w) in [0, 1], in place of those that `settings.low` names.

    Raises:
        ConfigError: the network has no such labels, or needs images as conditions.
        DataError: the images to enlarge cannot be read.
    """
    task, classes = generator.objective.task, settings.classes
    if classes is not None and (not task.classes or max(classes) >= task.classes):
        message = (
            f"must be labels below {task.classes}" if task.classes else "is set, and this network has no class labels"
        )
        raise ConfigError("classes", classes, message)
    enlarges = bool(settings.low) or low is not None
    if enlarges != isinstance(task, SuperResolution):
        message = "is not for this run: it enlarges nothing" if enlarges else "is not set; give small images"
        raise ConfigError("low", settings.low, message)
    if task.image_channels and not enlarges:
        raise ConfigError("task", type(task).__name__, "needs images to work on; use ldae restore")
    if enlarges and isinstance(task, SuperResolution):
        size = generator.objective.tokenizer.image_shape[1] // task.factor
        low = small_images(settings.low, size) if settings.low else low
        assert low is not None
        if low.shape[-2:] != (size, size):
            raise DataError(f"low has images of {tuple(low.shape[-2:])} pixels; this run enlarges {size} x {size}")
        if settings.features:
            check_count("low", len(low))
        return Conditions(len(low), low=2 * low - 1)
    if not task.classes:
        return Conditions(settings.count)
    labels = torch.tensor(classes or list(range(task.classes)))
    return Conditions(settings.count, labels[torch.arange(settings.count) % len(labels)])


def small_images(source: str, size: int) -> Tensor:
    """Return the images of an .npz or a folder, (N, 3, size, size) in [0, 1].

    Raises:
        DataError: they cannot be read, or are of another size.
    """
    path = Path(source).expanduser()
    if path.suffix != ".npz":
        return torch.stack([picture(p, size) for p in files_of("low", source)])
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = torch.from_numpy(arrays["arr_0"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"low={source} holds no images ({error})") from None
    if not len(pixels) or pixels.dtype != torch.uint8:
        raise DataError(f"low={source} holds {len(pixels)} images of {pixels.dtype}; arr_0 must be (N, H, W, 3) uint8")
    if pixels.shape[1:] != (size, size, 3):
        raise DataError(f"low={source} has images of {tuple(pixels.shape[1:])}; this run enlarges {size} x {size} x 3")
    return to_floats(pixels)


def check_init(generator: Generator, config: Mapping[str, Any]) -> None:
    """Refuse to start from noise a sampler that needs degraded images.

    Raises:
        ConfigError: the network was trained on degraded images, or the sampler degrades its predictions.
    """
    corruption, rule = generator.objective.corruption, generator.sampler.rule
    if config.get("init") or not (corruption.pixel_only or isinstance(rule, Cold)):
        return
    name = type(corruption if corruption.pixel_only else rule).__name__
    message = f"is not set, and {name} does not start from noise; use {_init_for(corruption)}ldae restore"
    raise ConfigError("init", None, message)


def _init_for(corruption: Corruption) -> str:
    """Return the initial states that suit a corruption, for an error message."""
    if isinstance(corruption, Blend):  # its images are not loaded yet
        return "init=mixed_signal or "
    state = corruption.draw(torch.zeros(1, 3, 32, 32), BatchGenerator([0]))
    if isinstance(state, Mixed):
        return "init=mixed_signal or "
    return "init=coarse_gaussian or " if type(state) is State else ""


def initial_state(generator: Generator, config: Mapping[str, Any], session: Session) -> InitialState | None:
    """Return the initial state of a generation, fitted on training images or read from a picture; None for noise.

    Raises:
        ConfigError: no picture of the style is named.
        DataError: it cannot be read.
    """
    if not config.get("init"):
        return None
    objective = generator.objective
    session.load_blend_images(objective.corruption)
    start = Parts({"init": config["init"]}).build_init(objective).to(session.world.device)
    if isinstance(start, CoarseMixture):
        fit_colours(start, session)
    if isinstance(start, StyledSignal):
        x = 2 * picture(Path(start.style).expanduser(), session.parts.data.size) - 1
        start.set_style(objective.tokenizer.encode(x[None].to(session.world.device))[0])
    return start


def fit_colours(start: CoarseMixture, session: Session) -> None:
    """Fit the colours of x_T to the training images, and print the number of components that BIC selects."""
    images = session.images(session.splits().train)
    if start.components == 1:
        start.fit_gaussian(images)
        return
    mixture = fit_mixture(torch.cat(list(start.blocks(images))), start.components)
    start.set_mixture(mixture.weights, mixture.means, mixture.covariances)
    if start.components is None and session.world.main:
        tried = ", ".join(f"{k}: {bic:.0f}" for k, bic in mixture.bic.items())
        print(f"x_T: a mixture of {len(mixture.weights)} Gaussians (BIC {tried})")


@dataclass(frozen=True)
class Comparison:
    """Features and images that samples are compared with.

    Attributes:
        reader: reads features.
        splits: of the run's data.
    """

    reader: Reader
    splits: Splits

    @classmethod
    def of(cls, features: str, session: Session) -> Comparison:
        """Make the reader that `features` names; faults end the run before it samples."""
        splits = session.splits()
        return cls(reader_of(features, session, splits), splits)

    def figures(self, images: Tensor) -> tuple[dict[str, float], list[str]]:
        """Return the scores of images (N, 3, H, W) in [0, 1] against train, and caveats about them."""
        reference = self.reader.reference(self.splits.train, self.splits.fingerprint, "train")
        return compare_sets(self.reader, images, reference), caveats(self.reader, len(images), reference)


class Sampling:
    """Samples missing batches.

    Args:
        generator: a trained denoiser with its trajectory.
        conditions: conditions of the samples.
        settings: settings of the command.
        folder: output folder.
        session: device and data.
        comparison: comparison with the training set, or None.
    """

    def __init__(
        self,
        generator: Generator,
        conditions: Conditions,
        settings: SampleSettings,
        folder: RunFolder,
        session: Session,
        comparison: Comparison | None = None,
    ):
        self.comparison = comparison
        self.generator, self.conditions, self.settings = generator, conditions, settings
        self.folder, self.session = folder, session
        self.shards = math.ceil(conditions.count / settings.batch)

    def shard(self, k: int) -> Path:
        """Return the file of the k-th batch."""
        return self.folder.path / "shards" / f"{k:06d}.safetensors"

    def draw_all(self) -> None:
        """Sample the batches of this process."""
        world = self.session.world
        mine = range(world.rank, self.shards, world.size)
        steps = self.generator.passes()
        progress = Progress(self.session.progress, len(mine) * steps, title="sampling")
        for k in mine:
            index = range(k * self.settings.batch, min((k + 1) * self.settings.batch, self.conditions.count))
            if not (has_intact_tensors(self.shard(k)) and len(self._load(k)) == len(index)):
                self._draw(k, index, progress)
            else:
                progress.done += steps  # drawn by an earlier process
        progress.close()

    def _draw(self, k: int, index: range, progress: Progress) -> None:
        animation = Animation(self.generator, shown=8) if self.settings.gif and not k else None

        def callback(i: int, step: SamplingStep, x: Tensor, x0: Tensor) -> None:
            self.session.stop.poll()
            progress.advance()
            if animation:
                animation(i, step, x, x0)

        cond = self.conditions.of(index, self.generator.device)
        pixels = (self.generator.from_noise(list(index), cond, callback) * 255).round().to(torch.uint8)
        save_tensors(self.shard(k), {IMAGES: rearrange(pixels, "b c h w -> b h w c")})
        if animation:
            animation.save(self.folder.path / "trajectory.gif")

    def _load(self, k: int) -> Tensor:
        """Return the images of the k-th batch, (B, H, W, C) uint8."""
        return load_tensors(self.shard(k))[IMAGES]

    def finish(self, provenance: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write samples.npz, the grid with the names of classes, and samples.json with provenance and scores."""
        images = torch.cat([self._load(k) for k in range(self.shards)]).numpy()
        labels: dict[str, Any] = {} if self.conditions.labels is None else {"arr_1": self.conditions.labels.numpy()}
        with open_atomic(self.folder.path / "samples.npz") as file:
            np.savez(file, arr_0=images, **labels)
        save_png(self.folder.path / "grid.png", grid(images, self.conditions.labels, names))
        figures, warnings = self._figures(images)
        measured = {"figures": figures, "caveats": warnings}
        write_json(self.folder.path / "samples.json", {**provenance, "images": len(images), **measured})
        for name, value in figures.items():
            print(f"{name} {value:.4g}")
        for caveat in warnings:
            print(f"caveat: {caveat}")
        shutil.rmtree(self.folder.path / "shards", ignore_errors=True)

    def _figures(self, images: np.ndarray) -> tuple[dict[str, float], list[str]]:
        if self.comparison is None:
            return {}, []
        return self.comparison.figures(to_rgb(to_floats(images)))

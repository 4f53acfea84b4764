"""Restore, enlarge, segment or edit pictures with a trained model.

    ldae restore run=RUN                                  # on 64 hold-out images of the run's data
    ldae restore run=RUN pictures=PICTURE out=OUT            # or a folder of pictures
    ldae restore run=COLD_RUN mask=strokes                # or boxes, or a black and white picture: fill any hole
    ldae restore run=RUN how=edit t0=[0.3,0.5] guide=STROKES keep=MASK pictures=PICTURE

Cold Diffusion runs invert their degradation, SR3 runs enlarge, SegDiff runs segment. Any run of an image diffusion
edits (SDEdit; from simulated strokes without guide=), inverts a picture to its noise and reconstructs it (how=invert,
DDIM), or interpolates between the noise of two pictures (how=interpolate).
Writes OUT/restored.png (a row for each picture), OUT/NAME.png for each of your own pictures, OUT/trajectory.gif (an
animation, and trajectory.png, a strip of it), OUT/restored.npz (the columns, (N, H, W, C) uint8) and OUT/restored.json
with the printed scores. how=edit also writes OUT/guides/NAME.png, the simulated strokes of your pictures, to paint on
and to give as guide=; with features= it draws realism over faithfulness for the t0, OUT/curve.png, .pdf and .svg.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.sampling.animation import Animation
from ldae.app.sampling.curve import write_curve
from ldae.app.sampling.distances import Reader, caveats, check_count, compare_sets, reader_of
from ldae.app.sampling.generator import generator_of, provenance_of
from ldae.app.sampling.images import Guides, Pictures
from ldae.app.session import Session, result_folder, root_settings, session_of
from ldae.core.errors import ConfigError
from ldae.core.files import make_folder, open_atomic, write_json
from ldae.core.progress import Progress
from ldae.core.types import Batch, BatchGenerator, Count, Fraction, Range
from ldae.data.strokes import simulate_strokes
from ldae.diffusion.corruptions.mask import Mask
from ldae.diffusion.corruptions.shapes import SHAPES
from ldae.engine.logging import save_png
from ldae.engine.run_folder import RunFolder
from ldae.objectives.panels import add_heads, tile, to_rgb
from ldae.sampling.generate import Generator
from ldae.sampling.inpaint import Holes, Inpaint
from ldae.sampling.restore import Columns, Edit, Enlarge, Guide, Interpolate, Invert, Restoration, Segment, Undo
from ldae.tasks.segmentation import Segmentation
from ldae.tasks.super_resolution import SuperResolution


@dataclass(frozen=True)
class RestoreSettings:
    """Configure a restoration: the pictures, the operation and its settings.

    Attributes:
        pictures: a picture or a folder of pictures; the run's own data if None.
        split: split of the run's data to restore, without `pictures`.
        count: number of images of the split.
        batch: images per forward pass.
        shown: number of pictures in restored.png.
        how: operation; `auto` for the one that the run was trained for.
        runs: segment: number of sampled masks to average.
        t0: edit: fractions of the schedule at which the reverse process starts.
        guide: edit: a picture, or a folder of the same names; simulated strokes if None.
        mask: inpaint: random `strokes` or `boxes`, a mask, or a folder of masks; white pixels are filled in. For runs
            with corruption=mask.
        keep: edit: a mask, or a folder of masks; white pixels are kept.
        repeats: edit: number of passes, each from the last result.
        strokes: edit: width of simulated strokes in pixels, odd.
        colours: edit: number of colours of simulated strokes.
        palette: edit: choice of these colours.
        gif: write an animation of the first trajectories.
        features: feature extractor of the distances between sets; none are measured if None.
    """

    pictures: str | None
    split: Literal["holdout", "test"]
    count: Count
    batch: Count
    shown: Count
    how: Literal["auto", "undo", "inpaint", "enlarge", "segment", "edit", "invert", "interpolate"]
    runs: Count
    t0: list[Fraction]
    guide: str | None
    mask: str | None
    keep: str | None
    repeats: Count
    strokes: Count
    colours: Annotated[int, Range(2, 256)]
    palette: Literal["median_cut", "kmeans"]
    gif: bool
    features: str | None

    def __post_init__(self) -> None:
        if self.features and self.pictures:
            raise ConfigError("features", self.features, "compares with the run's own data; leave pictures= out")
        if self.features:
            check_count("count", self.count)
        if self.strokes % 2 == 0:
            raise ConfigError("strokes", self.strokes, "must be odd: the width of a median filter")
        if self.mask and self.how not in ("auto", "inpaint"):
            raise ConfigError("mask", self.mask, f"is for how=inpaint, not for how={self.how}")
        if self.how == "inpaint" and not self.mask:
            raise ConfigError("mask", None, "is not set; give mask=strokes, mask=boxes, or black and white pictures")


def main(argv: Sequence[str]) -> None:
    """Run `ldae restore`."""
    config, precision = settle_precision(resolved(compose("restore", argv)))
    settings: RestoreSettings = root_settings(RestoreSettings, config)
    generator, run = generator_of(config)
    restoration_type(generator, settings).check(generator)
    session = session_of(run, config)
    folder = result_folder(config, "restored")
    with session.running(folder):
        announce(precision)
        session.load_blend_images(generator.objective.corruption)
        pictures = Pictures(session, settings.pictures, settings.split, settings.count, settings.batch)
        restoration = restoration_of(
            generator,
            settings,
            pictures.guides(settings.guide, settings.keep),
            lambda batch: pictures.matching("mask", settings.mask or "", batch),
        )
        reader = set_reader(settings, restoration, session, pictures) if settings.features else None
        columns = restore_all(restoration, pictures, settings, folder, session)
        write_pictures(columns, pictures, settings, folder, [restoration.head(name) for name in columns])
        write_arrays(columns, folder)
        figures = restoration.figures(columns) if restoration.truth in columns else {}
        warnings: list[str] = []
        if reader is not None:
            scores, warnings = set_scores(reader, columns, restoration, pictures)
            figures = {name: {**figures.get(name, {}), **more} for name, more in scores.items()}
        count = len(next(iter(columns.values())))
        provenance = {
            **provenance_of(config, run),
            "images": count,
            "split": None if settings.pictures else settings.split,
        }
        names = {"how": type(restoration).__name__, "measured": list(restoration.measured)}
        measured = {**names, "figures": figures, "caveats": warnings}
        write_json(folder.path / "restored.json", {**provenance, **measured})
        if reader is not None and isinstance(restoration, Edit):
            write_curve(folder.path, figures, restoration, reader.name)
        if figures:
            print(table(figures))
        for caveat in warnings:
            print(f"caveat: {caveat}")
        folder.set_status("done", count)
        print(f"done: {folder.path}\n  pictures: {folder.path / 'restored.png'}")


RESTORATIONS: Mapping[str, type[Restoration]] = {
    "undo": Undo,
    "inpaint": Inpaint,
    "enlarge": Enlarge,
    "segment": Segment,
    "edit": Edit,
    "invert": Invert,
    "interpolate": Interpolate,
}


def restoration_type(generator: Generator, settings: RestoreSettings) -> type[Restoration]:
    """Return the restoration of `how` and `mask`.

    Raises:
        ConfigError: the run was not trained for that.
    """
    objective = generator.objective
    trained: type[Restoration] = Edit
    if isinstance(objective.task, Segmentation):
        trained = Segment
    elif isinstance(objective.task, SuperResolution):
        trained = Enlarge
    elif objective.corruption.pixel_only:
        trained = Undo
    how = "inpaint" if settings.mask else settings.how
    if how == "inpaint":
        if not isinstance(objective.corruption, Mask):
            message = "fills holes, and this run was not trained on masks; give a run with corruption=mask"
            raise ConfigError("mask", settings.mask, message)
        return Inpaint
    selected = {"auto": trained, **RESTORATIONS}[how]
    # a Gaussian diffusion of images supports editing, inversion, interpolation and denoising
    if selected is not trained and not (trained is Edit and selected in (Undo, Invert, Interpolate)):
        raise ConfigError("how", how, f"is not what this run was trained for; use how={trained.__name__.lower()}")
    return selected


def restoration_of(
    generator: Generator, settings: RestoreSettings, guides: Guides, masks: Callable[[Batch], Tensor]
) -> Restoration:
    """Build the restoration with its settings.

    Args:
        generator: the trained model.
        settings: of the command.
        guides: function from a batch to its guide and its mask of kept pixels, if there are any.
        masks: function from a batch to the holes that `mask=` gives as pictures, (B, 3, H, W) in [0, 1].
    """
    type_ = restoration_type(generator, settings)
    if type_ is Inpaint:
        assert settings.mask
        return Inpaint(generator, holes_of(settings.mask, masks))
    if type_ is Segment:
        return Segment(generator, settings.runs)
    if type_ is not Edit:
        return type_(generator)

    def guided(batch: Batch) -> Guide:
        guide, keep = guides(batch)
        painted = (
            simulate_strokes(batch.images, settings.strokes, settings.colours, settings.palette)
            if guide is None
            else guide
        )
        return Guide(painted, None if keep is None else keep.mean(1, keepdim=True).round())

    return Edit(generator, guided, settings.t0, settings.repeats)


def holes_of(mask: str, pictures: Callable[[Batch], Tensor]) -> Holes:
    """Return the shapes of holes: random ones, or the white pixels of pictures."""

    def drawn(batch: Batch, rng: BatchGenerator) -> Tensor:
        return SHAPES[mask](len(batch), batch.images.shape[-1], rng)

    def given(batch: Batch, rng: BatchGenerator) -> Tensor:
        return pictures(batch).mean(1) >= 0.5

    return drawn if mask in SHAPES else given


def restore_all(
    restoration: Restoration, pictures: Pictures, settings: RestoreSettings, folder: RunFolder, session: Session
) -> Columns:
    """Return the columns of all pictures, on the CPU."""
    batches: list[Columns] = []
    progress = Progress(session.progress, pictures.batches * restoration.passes, title="restoring")
    restoration.generator.on_step = progress.advance
    for k, batch in enumerate(pictures):
        animation = Animation(restoration.generator) if settings.gif and not k else None

        def callback(i: int, step: Any, x: Tensor, x0: Tensor, animation: Animation | None = animation) -> None:
            session.stop.poll()
            if animation:
                animation(i, step, x, x0)

        batches.append({name: x.cpu() for name, x in restoration(batch, callback).items()})
        if animation:
            animation.save(folder.path / "trajectory.gif")
    progress.close()
    return {name: torch.cat([columns[name] for columns in batches]) for name in batches[0]}


def write_pictures(
    columns: Columns, pictures: Pictures, settings: RestoreSettings, folder: RunFolder, heads: Sequence[str]
) -> None:
    """Write restored.png with a row for each picture, and a file for each of the user's pictures."""
    coloured = torch.stack([to_rgb(x) for x in columns.values()], dim=1)  # (N, columns, 3, H, W)
    rows = torch.linspace(0, len(coloured) - 1, min(settings.shown, len(coloured))).round().long()
    save_png(folder.path / "restored.png", add_heads(tile(coloured[rows]), heads))
    for i, name in enumerate(pictures.names or []):
        save_png(folder.path / f"{name}.png", add_heads(tile(coloured[i : i + 1]), heads))
    if pictures.names and "guide" in columns and not settings.guide:
        make_folder(folder.path / "guides")
        for name, guide in zip(pictures.names, columns["guide"], strict=True):
            save_png(folder.path / "guides" / f"{name}.png", guide)


def write_arrays(columns: Columns, folder: RunFolder) -> None:
    """Write restored.npz: {column: (N, H, W, C) uint8}."""
    arrays = {name: (x * 255).round().to(torch.uint8).movedim(1, -1).numpy() for name, x in columns.items()}
    with open_atomic(folder.path / "restored.npz") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names of columns are no parameters of savez


def set_reader(settings: RestoreSettings, restoration: Restoration, session: Session, pictures: Pictures) -> Reader:
    """Make the reader of features, before anything is restored.

    Raises:
        ConfigError: nothing that is restored is a set of images, or there is no such reader.
    """
    assert pictures.splits is not None
    assert settings.features
    if isinstance(restoration, Segment) or not restoration.measured:
        message = (
            f"compares sets of images, and {type(restoration).__name__.lower()} measures none; leave features= out"
        )
        raise ConfigError("features", settings.features, message)
    return reader_of(settings.features, session, pictures.splits, pictures.split)


def set_scores(
    reader: Reader, columns: Columns, restoration: Restoration, pictures: Pictures
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return scores of each measured column against all images of its split, and caveats about them."""
    assert pictures.splits is not None
    split = pictures.split
    reference = reader.reference(getattr(pictures.splits, split), pictures.splits.fingerprint, split)
    count = len(next(iter(columns.values())))
    scores = {name: compare_sets(reader, columns[name], reference) for name in restoration.compared}
    return scores, caveats(reader, count, reference)


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table with a row for each column of restored.png."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for column, row in figures.items():
        lines.append(f"| {column} | " + " | ".join(f"{row[n]:.4g}" if n in row else "" for n in names) + " |")
    return "\n".join(lines)

"""Measure a diffusion model over steps S and eta of DDIM, and sigma-hat of DDPM: distance and time of every cell.

    ldae ddim-table run=RUN
    ldae ddim-table run=RUN steps=[10,20,50,100,1000] count=5000 features=inception spacing=linear

The table of arXiv 2010.02502 (Table 1) for your own run, beside the published one for CIFAR-10. Every cell draws the
same number of images from the same noise and compares them with the training images in the features of one network.
Finished cells are not measured again, so that the same command continues where it was stopped. Writes OUT/ddim.md (the
tables), OUT/ddim.json, OUT/samples.png (the first images of every cell) and OUT/figures/steps.svg, .pdf, .png and .csv,
the distance over the steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.sampling.distances import caveats, check_count, compare_sets, reader_of
from ldae.app.sampling.generator import generator_of, provenance_of
from ldae.app.session import Session, result_folder, root_settings, session_of
from ldae.config.build import Parts
from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import (
    has_intact_tensors,
    json_hash,
    load_tensors,
    open_atomic,
    read_json,
    save_tensors,
    write_json,
    write_text,
)
from ldae.core.progress import Progress
from ldae.core.types import Cond, Count, Fraction, PossiblyEmpty
from ldae.diffusion.samplers import DDIM, FixedLargeVariance, StepRule
from ldae.diffusion.spacing import Counted
from ldae.diffusion.targets import usable_steps
from ldae.diffusion.trajectory import build_trajectory
from ldae.engine.logging import save_png
from ldae.metrics.distances import metric_name
from ldae.objectives.panels import add_heads, tile, to_rgb
from ldae.sampling.generate import Generator
from linear_probe.report.lines import Point, XAxis, draw_lines
from linear_probe.report.rendering import render
from linear_probe.results import markdown

SHOWN = 4  # images of a cell in samples.png, 2 x 2
SIGMA_HAT = "sigma-hat"
# FID on CIFAR-10, quadratic spacing: Table 1 of arXiv 2010.02502
PUBLISHED_STEPS = (10, 20, 50, 100, 1000)
PUBLISHED: Mapping[str, Sequence[float]] = {
    "eta = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    SIGMA_HAT: (367.43, 133.37, 32.72, 9.99, 3.17),
}


@dataclass(frozen=True)
class DDIMTableSettings:
    """Configure the table: its rows, its columns and the images of a cell.

    Attributes:
        steps: S, numbers of sampling steps: the columns.
        eta: shares of the variance of ancestral sampling: the rows.
        sigma_hat: add a row with the larger variance of DDPM.
        count: number of images of each cell.
        batch: images per forward pass.
        features: feature extractor of the distance: classifier, inception, a shipped encoder, or the folder of a run.
    """

    steps: list[Count]
    eta: PossiblyEmpty[Fraction]
    sigma_hat: bool
    count: Count
    batch: Count
    features: str

    def __post_init__(self) -> None:
        check_count("count", self.count)
        for key, values in (("steps", self.steps), ("eta", self.eta)):
            if len(set(values)) < len(values):
                raise ConfigError(key, values, "must name each once")
        if not self.rules:
            raise ConfigError("eta", self.eta, "leaves no row; name one, or use sigma_hat=true")

    @property
    def rules(self) -> dict[str, StepRule]:
        """Return {row: step rule}."""
        rows: dict[str, StepRule] = {f"eta = {eta:g}": DDIM(eta) for eta in self.eta}
        return {**rows, SIGMA_HAT: FixedLargeVariance()} if self.sigma_hat else rows


@dataclass(frozen=True)
class Cell:
    """One sampler over one number of steps.

    Attributes:
        row: name of the sampler.
        steps: S.
        generator: with this sampler.
        file: of its results, without a suffix; equal for equal measurements.
    """

    row: str
    steps: int
    generator: Generator
    file: Path

    @property
    def scores(self) -> Path:
        """Return the file of the scores, written last."""
        return self.file.with_name(f"{self.file.name}.json")  # not with_suffix: "eta0.2-S10" has a dot

    @property
    def images(self) -> Path:
        """Return the file of the first images."""
        return self.file.with_name(f"{self.file.name}.safetensors")

    def results(self) -> dict[str, Any] | None:
        """Return the results on disk; None if there are none, or a file is damaged."""
        try:
            results = read_json(self.scores)
        except CheckpointError:
            return None
        return results if has_intact_tensors(self.images) else None


def main(argv: Sequence[str]) -> None:
    """Run `ldae ddim-table`."""
    config, precision = settle_precision(resolved(compose("ddim_table", argv)))
    settings: DDIMTableSettings = root_settings(DDIMTableSettings, config)
    spacing = Parts({"spacing": config["spacing"]}).spacing
    if not isinstance(spacing, Counted):
        name = type(spacing).__name__
        raise ConfigError("spacing", name, "takes no number of steps; use linear, quadratic, exact or trailing")
    config["spacing"] = {**config["spacing"], "count": 1}  # each cell has its own
    generator, run = generator_of(config)
    check_run(generator, str(config["run"]))
    session, folder = session_of(run, config), result_folder(config, "ddim")
    identity = {key: config.get(key) for key in ("seed", "guidance", "clip", "precision", "sampling_schedule")}
    identity |= {"checkpoint": run.checkpoint.hash, "count": settings.count, "spacing": type(spacing).__name__}
    cells = cells_of(settings, generator, config, folder.path / "cells", identity)
    with session.running(folder):
        announce(precision)
        splits = session.splits()
        reader = reader_of(settings.features, session, splits)
        compared = json_hash([reader.name, splits.fingerprint])[:6]
        named = [replace(cell, file=cell.file.with_name(f"{cell.file.name}-{compared}")) for cell in cells]
        missing = [cell for cell in named if cell.results() is None]
        print(f"{len(named)} cells, {len(named) - len(missing)} of them done, in {folder.path}", flush=True)
        reference = reader.reference(splits.train, splits.fingerprint, "train")
        for number, cell in enumerate(missing, 1):
            print(f"[{number}/{len(missing)}] {cell.row}, {cell.steps} steps", flush=True)
            images, seconds = draw(cell, settings, session)
            cell.file.parent.mkdir(exist_ok=True)
            save_tensors(cell.images, {"images": (images[:SHOWN] * 255).round().byte()})
            scores = compare_sets(reader, images, reference)
            write_json(cell.scores, {"seconds_per_image": seconds, **scores})
        warnings = caveats(reader, settings.count, reference)
        provenance = {**provenance_of(config, run), "images": settings.count}
        write(named, settings, folder.path, provenance, reader.name, warnings)
        folder.set_status("done", len(named))


def check_run(generator: Generator, run: str) -> None:
    """Refuse a run whose images do not start from noise alone.

    Raises:
        ConfigError: it inverts a degradation, or is conditioned on an image.
    """
    objective = generator.objective
    if objective.corruption.pixel_only or objective.task.image_channels:
        message = "does not make images from noise alone; give a run of experiment=ddpm/... or another diffusion"
        raise ConfigError("run", run, message)


def cells_of(
    settings: DDIMTableSettings,
    generator: Generator,
    config: Mapping[str, Any],
    folder: Path,
    identity: Mapping[str, Any],
) -> list[Cell]:
    """Return every cell, row by row.

    Raises:
        ConfigError: the schedule has fewer steps.
    """
    objective = generator.objective
    parts = Parts({key: config[key] for key in ("spacing", "sampling_schedule") if config.get(key)})
    schedule = parts.sampling_schedule if "sampling_schedule" in parts.config else objective.schedule
    usable, spacing = usable_steps(schedule, objective.target), type(parts.spacing)
    assert issubclass(spacing, Counted)
    if (most := max(settings.steps)) > usable:
        raise ConfigError("steps", most, f"must be at most {usable}, the steps that can be visited")
    cells = []
    for row, rule in settings.rules.items():
        for steps in settings.steps:
            visited = build_trajectory(schedule, spacing(steps).steps(usable), objective.schedule)
            sampler = replace(generator.sampler, rule=rule, trajectory=visited)
            name = f"{row.replace(' = ', '')}-S{steps}-{json_hash([identity, row, steps])[:10]}"
            cells.append(Cell(row, steps, Generator(objective, sampler, generator.seed), folder / name))
    return cells


def draw(cell: Cell, settings: DDIMTableSettings, session: Session) -> tuple[Tensor, float]:
    """Draw the images of a cell, (N, 3, H, W) in [0, 1] on the CPU, and return the seconds of each too."""
    g, parts = cell.generator, []
    classes = g.objective.task.classes
    starts = range(0, settings.count, settings.batch)
    progress = Progress(session.progress, len(starts) * g.passes(), title="sampling")

    def callback(*_: object) -> None:
        session.stop.poll()
        progress.advance()

    began = time.perf_counter()
    for start in starts:
        index = list(range(start, min(start + settings.batch, settings.count)))
        cond = Cond(label=torch.tensor(index, device=g.device) % classes) if classes else None
        parts.append(to_rgb(g.from_noise(index, cond, callback)).cpu())
    seconds = (time.perf_counter() - began) / settings.count
    progress.close()
    return torch.cat(parts), seconds


def write(
    cells: Sequence[Cell],
    settings: DDIMTableSettings,
    out: Path,
    provenance: Mapping[str, Any],
    features: str,
    warnings: Sequence[str],
) -> None:
    """Write tables, figures and the picture of all cells, and print the tables.

    Args:
        provenance: of the measurement.
        features: name of the features of the distances.
        warnings: caveats about the distances.
    """
    results = {(cell.row, cell.steps): r for cell in cells if (r := cell.results()) is not None}
    distance, limit, kernel, error = (
        metric_name(metric, features)
        for metric in ("frechet_distance", "frechet_distance_infinity", "kernel_distance", "kernel_distance_error")
    )
    rows = [{"sampler": row, "steps": steps, **values} for (row, steps), values in results.items()]
    write_json(out / "ddim.json", {**provenance, "cells": rows, "caveats": list(warnings)})
    samplers, unbiased = list(settings.rules), []
    if all(limit in values for values in results.values()):  # absent with fewer than three images a dimension
        entries = table(samplers, settings.steps, lambda row, steps: f"{results[row, steps][limit]:.4g}")
        unbiased += [f"{limit}: extrapolated to infinitely many images", entries]
    if all(error in values for values in results.values()):  # absent from cells of earlier versions

        def with_error(row: str, steps: int) -> str:
            return f"{results[row, steps][kernel]:.3g} ({results[row, steps][error]:.2g})"

        unbiased += [f"{kernel}, its standard error in brackets", table(samplers, settings.steps, with_error)]
    text = "\n\n".join(
        [
            f"{distance} of {settings.count:,} images to the training images",
            table(samplers, settings.steps, lambda row, steps: f"{results[row, steps][distance]:.4g}"),
            *unbiased,
            "Seconds per image",
            table(samplers, settings.steps, lambda row, steps: f"{results[row, steps]['seconds_per_image']:.3g}"),
            "Published: FID of 50,000 images on CIFAR-10, a network of 35.7 M parameters (Table 1, arXiv 2010.02502). "
            "Distances in other features or of fewer images have another scale; compare the order of the cells.",
            table(list(PUBLISHED), PUBLISHED_STEPS, lambda r, steps: str(PUBLISHED[r][PUBLISHED_STEPS.index(steps)])),
            *(f"Caveat: {caveat}." for caveat in warnings),
        ]
    )
    write_text(out / "ddim.md", text + "\n")
    print(f"\n{text}\n")
    write_figure({row: {s: results[row, s][distance] for s in settings.steps} for row in samplers}, distance, out)
    shown = [load_tensors(cell.images)["images"] for cell in cells]
    save_png(out / "samples.png", picture(shown, samplers, settings.steps))
    print(f"done: {out}\n  figure: {out / 'figures' / 'steps.png'}\n  pictures: {out / 'samples.png'}")


def table(rows: Sequence[str], columns: Sequence[int], entry: Any) -> str:
    """Return a Markdown table with a row for each sampler and a column for each number of steps.

    Args:
        entry: (row, number of steps) -> text.
    """
    head = ["sampler", *(f"S = {steps}" for steps in columns)]
    return markdown([head, *([row, *(entry(row, steps) for steps in columns)] for row in rows)])


def write_figure(distances: Mapping[str, Mapping[int, float]], name: str, out: Path) -> None:
    """Write OUT/figures/steps.*, the distance over the number of steps with a line for each sampler."""
    series = {row: [Point(s, d) for s, d in sorted(by_steps.items())] for row, by_steps in distances.items()}
    ticks = sorted({steps for by_steps in distances.values() for steps in by_steps})
    listed = "; ".join(f"{row}: " + ", ".join(f"{p.y:.4g} at {p.x:g}" for p in ps) for row, ps in series.items())
    axis = XAxis("steps S", log2=True, ticks=ticks)
    title, y_label = "Distance to the training images over the sampling steps", name.partition("[")[0].replace("_", " ")
    drawing = draw_lines(title, f"{name} by sampler and number of steps. {listed}.", series, axis, y_label)
    (out / "figures").mkdir(exist_ok=True)
    for suffix, content in render(drawing).items():
        with open_atomic(out / "figures" / f"steps.{suffix}") as file:
            file.write(content)


def picture(shown: Sequence[Tensor], samplers: Sequence[str], steps: Sequence[int]) -> Tensor:
    """Arrange the first images of all cells, (4, 3, H, W) uint8 each, as a row for each sampler, 2 x 2 in a tile."""
    tiles = torch.stack([rearrange(images / 255, "(r c) k h w -> k (r h) (c w)", r=2) for images in shown])
    grid = rearrange(tiles, "(r c) k h w -> r c k h w", c=len(steps))
    return add_heads(tile(grid, least=128), [f"S = {count}" for count in steps], samplers)

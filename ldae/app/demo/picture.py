"""Draw hold-out images noised and denoised by a run: input | noised | denoised, with headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldae.app.session import Session
from ldae.app.training.monitors import joined
from ldae.core.files import wrap_write_errors
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator
from ldae.data.images import ImageSet
from ldae.data.loader import in_order
from ldae.diffusion.schedules import NoiseSchedule
from ldae.export.encoder import load_run
from ldae.objectives.denoise import Denoise

RATIOS = (0.3, 0.7, 1.5)  # sigma / gamma of the levels: standard deviation of the noise over that of the latent
ROWS = 6
TILE, GAP, HEAD, NAME = 96, 6, 40, 130  # pixels: side of a tile, gap between tiles, height of heads, width of names


@dataclass(frozen=True)
class Column:
    """Column of tiles under one heading.

    Attributes:
        head: heading of one or two lines.
        images: (B, 3, H, W) in [0, 1].
    """

    head: str
    images: Tensor


def draw_denoising(run: Path, path: Path) -> None:
    """Write a PNG of hold-out images of different classes, noised at three levels and denoised by the run's network.

    Args:
        run: folder of a finished pretraining of a denoiser.
        path: the PNG.
    """
    loaded = load_run(run)
    assert isinstance(loaded.objective, Denoise)
    session = Session({**loaded.config, "device": "cpu", "runtime": {"threads": 1, "progress": False}})
    splits = session.splits()
    rows = contrasty_rows(splits.holdout, ROWS)
    batch = joined(list(in_order(splits.holdout.subset(rows), ROWS, torch.device("cpu"))))
    names = [splits.classes[label].replace("_", " ") for label in batch.labels.tolist()]
    picture = compose_grid(names, columns_of(loaded.objective, batch))
    with wrap_write_errors(path):
        picture.save(path)


def contrasty_rows(images: ImageSet, count: int) -> np.ndarray:
    """Return the positions of one image of each of `count` classes, each with more contrast than most of its class."""
    batch = next(in_order(images, len(images), torch.device("cpu")))
    contrast = batch.images.std((1, 2, 3))
    classes = batch.labels.unique()
    rows = []
    for label in classes[torch.linspace(0, len(classes) - 1, min(count, len(classes))).round().long()]:
        members = (batch.labels == label).nonzero().flatten()
        rows.append(int(members[contrast[members].argsort()[len(members) * 4 // 5]]))
    return np.array(rows)


@torch.no_grad()
def columns_of(objective: Denoise, batch: Batch) -> list[Column]:
    """Return the input, and the noised and the denoised images at each level."""
    clean = (objective.task(batch)[0] + 1) / 2
    columns = [Column("input", clean)]
    for i, t in enumerate(steps_of(objective.schedule, RATIOS)):
        level = objective.schedule.at(torch.full((len(clean),), t))
        ratio = float(level.sigma[0] / level.gamma[0])
        noised, denoised = ((x + 1) / 2 for x in objective.denoise(batch, level, BatchGenerator([seed_of(i)])))
        columns += [Column(f"noised,\nnoise {ratio:.1f} x signal", noised), Column("denoised", denoised)]
    return columns


def steps_of(schedule: NoiseSchedule, ratios: Sequence[float]) -> list[int]:
    """Return the step of a schedule whose sigma / gamma is nearest to each ratio."""
    level = schedule.at(torch.arange(schedule.T))
    available = level.sigma / level.gamma
    return [int((available - ratio).abs().argmin()) for ratio in ratios]


def compose_grid(names: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """Return tiles in rows with names on their left and heads above, on white."""
    size = (NAME + len(columns) * (TILE + GAP), HEAD + len(names) * (TILE + GAP))
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for c, column in enumerate(columns):
        left = NAME + c * (TILE + GAP)
        draw.multiline_text((left + TILE / 2, HEAD - 6), column.head, "black", font, anchor="md", align="center")
        for r, image in enumerate(column.images):
            pixels = (image.expand(3, -1, -1).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
            tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, HEAD + r * (TILE + GAP)))
    for r, name in enumerate(names):
        draw.text((NAME - GAP, HEAD + r * (TILE + GAP) + TILE / 2), name, "black", font, anchor="rm")
    return canvas

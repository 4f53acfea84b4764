"""Diagnostic pictures of denoisers, masked autoencoders and tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from colorsys import hsv_to_rgb

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldae.core.pixels import to_floats
from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator, NoiseLevel
from ldae.metrics.image_quality import MIN_SIDE, psnr, ssim
from ldae.objectives.base import Panel, PretrainingObjective
from ldae.objectives.denoise import BUCKETS, Denoise
from ldae.objectives.masked import Masked
from ldae.tasks.segmentation import Segmentation
from ldae.tokenizers.base import Tokenizer

GAP = 2  # pixels between tiles
HEAD = 11  # height of the letters of a head, pixels


class DenoisingPanel:
    """clean | noised | denoised at four noise levels, and the PSNR of each, with heads that say both.

    The levels are at 1/8, 3/8, 5/8 and 7/8 of the schedule; images and noise are the same in every picture.

    Args:
        objective: a denoiser.
        batch: images; all are measured, `shown` of them, evenly spaced, are in the picture.
        every: steps between pictures.
        shown: rows of the picture.
    """

    name = "panel"
    EIGHTHS = (1, 3, 5, 7)

    def __init__(self, objective: Denoise, batch: Batch, every: int, shown: int = 8):
        self.objective, self.batch, self.every, self.shown = objective, batch, every, shown
        self.clean = (objective.task(batch)[0] + 1) / 2  # (B, C, H, W)

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        rows = _spread(len(self.clean), self.shown)
        images = [self.batch.images[rows]] if isinstance(self.objective.task, Segmentation) else []  # beside masks
        columns, scalars = [*images, self.clean[rows]], dict[str, float]()
        heads = [*(["image"] * len(images)), "clean"]
        for eighth in self.EIGHTHS:
            step = min(eighth * self.objective.schedule.T // 8, self.objective.usable - 1)
            level, noised, denoised = denoise_at(self.objective, self.batch, step, seed_of(eighth))
            columns += [noised[rows], denoised[rows]]
            before, after = psnr(noised, self.clean), psnr(denoised, self.clean)
            scalars |= {f"psnr_noised/{eighth}_8": before, f"psnr_denoised/{eighth}_8": after}
            heads += [f"{level_name(self.objective, level)}\n{before:.1f} dB", f"denoised\n{after:.1f} dB"]
        picture = tile(torch.stack([to_rgb(x) for x in columns], dim=1), heads=heads)
        return scalars, {"clean_noised_denoised": picture}


def denoise_at(objective: Denoise, batch: Batch, step: int, seed: int) -> tuple[NoiseLevel, Tensor, Tensor]:
    """Noise images at a step and denoise them in one pass.

    Args:
        objective: a denoiser.
        batch: B images.
        step: timestep, below T.
        seed: of the noise.

    Returns:
        The level, and noised and denoised images (B, C, H, W) in [0, 1].
    """
    t = torch.full((len(batch),), step, device=batch.images.device)
    level = objective.schedule.at(t)
    noised, denoised = objective.denoise(batch, level, BatchGenerator([seed], batch.images.device))
    return level, ((noised + 1) / 2).clamp(0, 1), ((denoised + 1) / 2).clamp(0, 1)


def level_name(objective: Denoise, level: NoiseLevel) -> str:
    """Return `sigma S` of the first image's level, or `t T` where the corruption adds no noise."""
    if objective.corruption.is_additive:
        return f"sigma {float(level.sigma[0]):.2f}"
    return f"t {int(level.t[0])}/{objective.T}"


class LossByLevel:
    """Loss on given images by noise level: the mean over each eighth of the steps, as in training.

    Images and noise are the same in every evaluation; the images of an eighth are spread evenly over its steps.

    Args:
        objective: a denoiser.
        batch: images.
        every: steps between evaluations.
    """

    name = "levels"

    def __init__(self, objective: Denoise, batch: Batch, every: int):
        self.objective, self.batch, self.every = objective, batch, every

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        device, count = self.batch.images.device, len(self.batch)
        within, scalars = (torch.arange(count, device=device) + 0.5) / count, {}
        for bucket in range(BUCKETS):
            t = ((bucket + within) * self.objective.T / BUCKETS).long()
            rng = BatchGenerator([seed_of(bucket)], device)
            losses, _ = self.objective.losses_at(self.batch, self.objective.schedule.at(t), rng)
            scalars[f"loss_level_holdout/{bucket}"] = losses.mean().item()
        return scalars, {}


class MaskingPanel:
    """original | masked | masked patches filled in; and the PSNR on masked patches.

    Images and masks are the same in every picture. With norm_pix predicted patches get the mean and deviation of the
    true patch, so that the PSNR does not measure brightness and contrast.

    Args:
        objective: a masked autoencoder.
        batch: images; all are measured, `shown` of them, evenly spaced, are in the picture.
        every: steps between pictures.
        shown: rows of the picture.
    """

    name = "panel"

    def __init__(self, objective: Masked, batch: Batch, every: int, shown: int = 8):
        self.objective, self.images, self.every, self.shown = objective, batch.images, every, shown

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        masked, filled, hidden = self.objective.fill_masked(
            self.images, BatchGenerator([seed_of(0)], self.images.device)
        )
        masked, filled = (((x + 1) / 2).clamp(0, 1) for x in (masked, filled))
        rows = _spread(len(self.images), self.shown)
        columns = [x[rows] for x in (self.images, masked, filled)]
        predicted, truth = (x[hidden].reshape(len(x), -1) for x in (filled, self.images))  # (B, numbers masked)
        figure = psnr(predicted, truth)
        heads = ["original", f"{100 * self.objective.ratio:.0f} %\nmasked", f"filled in\n{figure:.1f} dB"]
        pictures = {"original_masked_filled": tile(torch.stack(columns, dim=1), heads=heads)}
        return {"psnr_hidden": figure}, pictures


class ReconstructionPanel:
    """original | reconstruction; and their PSNR and SSIM.

    Args:
        tokenizer: fitted or in training.
        images: (B, 3, H, W) in [0, 1]; all are measured, `shown` of them, evenly spaced, are in the picture.
        every: steps between pictures.
        shown: columns of the picture.
    """

    name = "reconstruction"

    def __init__(self, tokenizer: Tokenizer, images: Tensor, every: int, shown: int = 16):
        self.tokenizer, self.images, self.every, self.shown = tokenizer, images, every, shown

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        reconstructed = reconstruct_images(self.tokenizer, self.images)
        rows = _spread(len(self.images), self.shown)
        picture = tile(torch.stack([self.images[rows], reconstructed[rows]]))
        statistics = self.tokenizer.statistics(2 * self.images - 1)
        return {**fidelity(reconstructed, self.images), **statistics}, {"original_reconstruction": picture}


def reconstruct_images(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Encode and decode images (B, 3, H, W) in [0, 1], clipped to [0, 1]."""
    return ((tokenizer.from_raw(tokenizer.to_raw(2 * images - 1)).float() + 1) / 2).clamp(0, 1)


def fidelity(predicted: Tensor, images: Tensor) -> dict[str, float]:
    """Return the mean PSNR (dB) of images (B, 3, H, W) in [0, 1], and the SSIM if they are as large as its window."""
    figures = {"psnr": psnr(predicted, images)}
    return {**figures, "ssim": ssim(predicted, images)} if min(images.shape[2:]) >= MIN_SIDE else figures


class FilterPanel:
    """Picture of the tokenizer's filters, each scaled to its own range; written once."""

    name = "filters"
    every = 0

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {}, {"tokenizer_filters": filter_tiles(self.tokenizer)}


def _spread(count: int, shown: int) -> Tensor:
    """Return `shown` of `count` row numbers, evenly spaced."""
    return torch.linspace(0, count - 1, min(shown, count)).round().long()


def filter_tiles(tokenizer: Tokenizer) -> Tensor:
    """Tile all filters of a tokenizer, eight in a row: (3, H, W) in [0, 1], 1/2 where a filter is 0.

    Filters of masks of K classes are grey, the mean over their channels.
    """
    filters = tokenizer.filters()  # (d, C, p, q)
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    high = filters.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    tiles = filters / high / 2 + 0.5
    columns = min(8, len(tiles))
    padding = torch.full((-len(tiles) % columns, *tiles.shape[1:]), 0.5, device=tiles.device)
    return tile(rearrange(torch.cat([tiles, padding]), "(r c) k p q -> r c k p q", c=columns))


def to_rgb(x: Tensor) -> Tensor:
    """Expand pictures (..., 1 or 3, H, W) to (..., 3, H, W); paint masks of K other classes, each in a colour."""
    if x.shape[-3] in (1, 3):
        return x.expand(*x.shape[:-3], 3, *x.shape[-2:])
    return torch.einsum("...khw,kc->...chw", x, class_colours(x.shape[-3]).to(x)).clamp(0, 1)


def class_colours(count: int) -> Tensor:
    """Return a colour for each class, (count, 3) in [0, 1]: black, then hues at the golden angle."""
    hues = [(0.6180339887 * k % 1, 0.55 + 0.4 * (k % 2), 0.95 - 0.25 * (k % 3 == 2)) for k in range(count - 1)]
    return torch.tensor([(0.0, 0.0, 0.0), *(hsv_to_rgb(*hue) for hue in hues)])


def tile(grid: Tensor, least: int = 64, heads: Sequence[str] = ()) -> Tensor:
    """Tile (rows, columns, 3, H, W) in [0, 1] as one picture (3, H', W'), enlarging tiles to `least` pixels.

    Args:
        grid: images.
        least: minimum side of a tile in pixels.
        heads: heads of the columns, as for `add_heads`; none if empty.
    """
    times = max(1, least // grid.shape[-2])
    grid = grid.repeat_interleave(times, -2).repeat_interleave(times, -1)
    framed = torch.nn.functional.pad(grid, (0, GAP, 0, GAP), value=1.0)
    picture = rearrange(framed, "r c k h w -> k (r h) (c w)")[:, :-GAP, :-GAP]
    return add_heads(picture, heads) if heads else picture


def add_heads(picture: Tensor, columns: Sequence[str], rows: Sequence[str] = ()) -> Tensor:
    """Write heads above the columns of a tiled picture, and at the left of its rows.

    Args:
        picture: (3, H, W) in [0, 1], of `tile`.
        columns: head of every column, broken between words where it is wider than its column.
        rows: head of every row; none if empty.

    Returns:
        (3, H', W') in [0, 1], on the CPU.
    """

    font = ImageFont.load_default(HEAD)
    height, width = picture.shape[1:]
    column, row = (width + GAP) // len(columns), (height + GAP) // max(1, len(rows))
    heads = [_break_lines(head, lambda text: font.getlength(text) <= column) for head in columns]
    top = (HEAD + 2) * max(len(lines) for lines in heads) + 2
    left = max((math.ceil(font.getlength(head)) + 6 for head in rows), default=0)
    page = Image.new("RGB", (left + width, top + height), "white")
    draw = ImageDraw.Draw(page)
    for i, lines in enumerate(heads):
        centre = left + i * column + (column - GAP) / 2
        draw.multiline_text((centre, top - 2), "\n".join(lines), "black", font, "md", spacing=2, align="center")
    for i, head in enumerate(rows):
        draw.text((left - 4, top + i * row + (row - GAP) / 2), head, "black", font, "rm")
    result = to_floats(np.array(page))
    result[:, top:, left:] = picture.cpu()
    return result


def _break_lines(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Break a text between words, and at its line ends, into lines that fit."""
    first, _, rest = text.partition("\n")
    lines = [""]
    for word in first.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if fits(longer) or not lines[-1] else [*lines, word]
    return [*lines, *_break_lines(rest, fits)] if rest else lines


def build_panels(objective: PretrainingObjective, batch: Batch, every: int, levels: bool = False) -> Sequence[Panel]:
    """Build the diagnostic pictures of a pretraining.

    Args:
        objective: denoising or masked.
        batch: images of the pictures.
        every: steps between pictures.
        levels: measure the loss of the images by noise level too, where there are levels.
    """
    if isinstance(objective, Denoise):
        panels: list[Panel] = [FilterPanel(objective.tokenizer), DenoisingPanel(objective, batch, every)]
        return [*panels, LossByLevel(objective, batch, every)] if levels else panels
    if isinstance(objective, Masked):
        return [MaskingPanel(objective, batch, every)]
    return []

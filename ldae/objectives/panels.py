"""Pictures of what a network restores and of what a tokenizer sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ldae.core.rng import seed_of
from ldae.core.types import Batch, BatchGenerator
from ldae.metrics.image_quality import MIN_SIDE, psnr, ssim
from ldae.objectives.base import Panel, PretrainingObjective
from ldae.objectives.denoise import Denoise
from ldae.objectives.masked import Masked
from ldae.tokenizers.base import Tokenizer

GAP = 2  # pixels between tiles


class DenoisingPanel:
    """clean | noised | denoised at four noise levels, and the PSNR of each.

    The levels are at 1/8, 3/8, 5/8 and 7/8 of the schedule; images and noise are the same at every look.

    Args:
        objective: a denoiser.
        batch: what it is shown; all are measured, `shown` of them, evenly spread, are drawn.
        every: steps between looks.
        shown: rows of the picture.
    """

    name = "panel"
    EIGHTHS = (1, 3, 5, 7)

    def __init__(self, objective: Denoise, batch: Batch, every: int, shown: int = 8):
        self.objective, self.batch, self.every, self.shown = objective, batch, every, shown
        self.clean = (objective.task(batch)[0] + 1) / 2  # (B, C, H, W)

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        drawn = _spread(len(self.clean), self.shown)
        message = [self.batch.images[drawn]] if self.clean.shape[1] == 1 else []  # beside a mask, what it is of
        columns, scalars = [*message, self.clean[drawn]], {}
        for eighth in self.EIGHTHS:
            noised, denoised = self._restored(eighth)
            columns += [noised[drawn], denoised[drawn]]
            scalars[f"psnr_noised/{eighth}_8"] = psnr(noised, self.clean)
            scalars[f"psnr_denoised/{eighth}_8"] = psnr(denoised, self.clean)
        return scalars, {"clean_noised_denoised": tiled(torch.stack([in_colour(x) for x in columns], dim=1))}

    def _restored(self, eighth: int) -> tuple[Tensor, Tensor]:
        """Noised and denoised images in [0, 1]."""
        step = min(eighth * self.objective.schedule.T // 8, self.objective.usable - 1)
        t = torch.full((len(self.clean),), step, device=self.clean.device)
        rng = BatchGenerator([seed_of(eighth)], self.clean.device)
        noised, denoised = self.objective.denoised(self.batch, self.objective.schedule.at(t), rng)
        return ((noised + 1) / 2).clamp(0, 1), ((denoised + 1) / 2).clamp(0, 1)


class MaskingPanel:
    """original | masked | hidden patches filled in, seen ones pasted; and the PSNR on hidden patches.

    Images and masks are the same at every look. Where answers are standardised (norm_pix), each gets the mean and
    deviation of the true patch: the picture and the PSNR know brightness and contrast, the network does not tell.

    Args:
        objective: a masked autoencoder.
        batch: what it is shown; all are measured, `shown` of them, evenly spread, are drawn.
        every: steps between looks.
        shown: rows of the picture.
    """

    name = "panel"

    def __init__(self, objective: Masked, batch: Batch, every: int, shown: int = 8):
        self.objective, self.images, self.every, self.shown = objective, batch.images, every, shown

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        masked, filled, hidden = self.objective.filled(self.images, BatchGenerator([seed_of(0)], self.images.device))
        masked, filled = (((x + 1) / 2).clamp(0, 1) for x in (masked, filled))
        drawn = _spread(len(self.images), self.shown)
        columns = [x[drawn] for x in (self.images, masked, filled)]
        pictures = {"original_masked_filled": tiled(torch.stack(columns, dim=1))}
        answers, truth = (x[hidden].reshape(len(x), -1) for x in (filled, self.images))  # as many hidden of each image
        return {"psnr_hidden": psnr(answers, truth)}, pictures


class ReconstructionPanel:
    """original | reconstruction, and how near they are.

    Args:
        tokenizer: one in training.
        images: (B, 3, H, W) in [0, 1]; all are measured, `shown` of them, evenly spread, are drawn.
        every: steps between looks.
        shown: columns of the picture.
    """

    name = "reconstruction"

    def __init__(self, tokenizer: Tokenizer, images: Tensor, every: int, shown: int = 16):
        self.tokenizer, self.images, self.every, self.shown = tokenizer, images, every, shown

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        answers = reconstructed(self.tokenizer, self.images)
        drawn = _spread(len(self.images), self.shown)
        picture = tiled(torch.stack([self.images[drawn], answers[drawn]]))
        statistics = self.tokenizer.statistics(2 * self.images - 1)
        return {**fidelity(answers, self.images), **statistics}, {"original_reconstruction": picture}


def reconstructed(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] encoded and decoded, clipped to [0, 1]."""
    return ((tokenizer.from_raw(tokenizer.to_raw(2 * images - 1)).float() + 1) / 2).clamp(0, 1)


def fidelity(answers: Tensor, images: Tensor) -> dict[str, float]:
    """PSNR (dB) and, where images are large enough for its window, SSIM, means over images (B, 3, H, W) in [0, 1]."""
    found = {"psnr": psnr(answers, images)}
    return {**found, "ssim": ssim(answers, images)} if min(images.shape[2:]) >= MIN_SIDE else found


class FilterPanel:
    """The tokenizer's filters, each scaled to its own range; drawn once."""

    name = "filters"
    every = 0

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {}, {"tokenizer_filters": filter_tiles(self.tokenizer)}


def _spread(count: int, shown: int) -> Tensor:
    """`shown` of `count` rows, evenly spread."""
    return torch.linspace(0, count - 1, min(shown, count)).round().long()


def filter_tiles(tokenizer: Tokenizer) -> Tensor:
    """All filters of a tokenizer, eight in a row: (3, H, W) in [0, 1], 1/2 where a filter adds nothing."""
    filters = tokenizer.filters()  # (d, 3, p, q)
    high = filters.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    tiles = filters / high / 2 + 0.5
    columns = min(8, len(tiles))
    padding = torch.full((-len(tiles) % columns, *tiles.shape[1:]), 0.5, device=tiles.device)
    return tiled(rearrange(torch.cat([tiles, padding]), "(r c) k p q -> r c k p q", c=columns))


def in_colour(x: Tensor) -> Tensor:
    """Pictures (..., 1 or 3, H, W) as (..., 3, H, W)."""
    return x.expand(*x.shape[:-3], 3, *x.shape[-2:])


def tiled(grid: Tensor, least: int = 64) -> Tensor:
    """Tiles (rows, columns, 3, H, W) in [0, 1] as one picture (3, H', W'), small ones enlarged to `least` pixels."""
    times = max(1, least // grid.shape[-2])
    grid = grid.repeat_interleave(times, -2).repeat_interleave(times, -1)
    framed = torch.nn.functional.pad(grid, (0, GAP, 0, GAP), value=1.0)
    return rearrange(framed, "r c k h w -> k (r h) (c w)")[:, :-GAP, :-GAP]


def panels_of(objective: PretrainingObjective, batch: Batch, every: int) -> Sequence[Panel]:
    """Return the pictures that are drawn in the course of a pretraining.

    Args:
        objective: the objective.
        batch: images that are shown.
        every: steps between pictures.
    """
    if isinstance(objective, Denoise):
        return [FilterPanel(objective.tokenizer), DenoisingPanel(objective, batch, every)]
    if isinstance(objective, Masked):
        return [MaskingPanel(objective, batch, every)]
    return []

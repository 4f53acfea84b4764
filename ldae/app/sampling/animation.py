"""Animate a sampling trajectory, and draw it as a strip."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldae.core.files import open_atomic
from ldae.diffusion.trajectory import SamplingStep
from ldae.engine.logging import save_png
from ldae.objectives.panels import tile, to_rgb
from ldae.sampling.generate import Generator

FRAMES = 48  # at most
MILLISECONDS = 80  # a frame; the last one stays for two seconds
COLUMNS = 6  # of the strip, at most


class Animation:
    """Animation of x_t (above) and the predicted x0 (below), step by step; and a strip, a row for each image.

    Args:
        generator: generator of the trajectory.
        shown: number of images, side by side.
    """

    def __init__(self, generator: Generator, shown: int = 8):
        self.generator, self.shown = generator, shown
        self.steps = len(generator.sampler.trajectory) - 1
        self.kept = self._spread(FRAMES)
        self.in_picture = self._spread(COLUMNS)
        self.frames: list[Image.Image] = []
        self.columns: dict[str, Tensor] = {}  # of the strip, by their heads: (shown, 3, H, W)

    def __call__(self, i: int, step: SamplingStep, x: Tensor, x0: Tensor) -> None:
        """Add a frame, if one is due at the i-th step."""
        if i not in self.kept | self.in_picture:
            return
        rows = [to_rgb(self.generator.to_image(z[: self.shown])).cpu() for z in (x, x0)]
        if i in self.kept:
            picture = (tile(torch.stack(rows)) * 255).round().to(torch.uint8)
            self.frames.append(Image.fromarray(picture.movedim(0, -1).numpy()))
        if i in self.in_picture:
            self.columns["result" if step.t < 0 else f"t={step.t}"] = rows[0]

    def _spread(self, count: int) -> set[int]:
        """Return the numbers of at most `count` steps, evenly spaced, with the first and the last."""
        return set(torch.linspace(0, self.steps - 1, min(count, self.steps)).round().long().tolist())

    def save(self, path: Path) -> None:
        """Write the GIF at `path`, and the strip beside it as a PNG, if there was a step.

        The columns of the strip are x_t after some of the steps, the last of them the result.
        """
        if not self.frames:
            return
        picture = tile(torch.stack(list(self.columns.values()), 1), heads=list(self.columns))
        save_png(path.with_suffix(".png"), picture)
        durations = [MILLISECONDS] * (len(self.frames) - 1) + [2000]
        with open_atomic(path) as file:
            self.frames[0].save(file, "GIF", save_all=True, append_images=self.frames[1:], duration=durations, loop=0)

"""Animate a sampling trajectory."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldae.core.files import open_atomic
from ldae.diffusion.trajectory import SamplingStep
from ldae.objectives.panels import tile, to_rgb
from ldae.sampling.generate import Generator

FRAMES = 48  # at most
MILLISECONDS = 80  # a frame; the last one stays for two seconds


class Animation:
    """Animation of x_t (above) and the predicted x0 (below), step by step.

    Args:
        generator: generator of the trajectory.
        shown: number of images, side by side.
    """

    def __init__(self, generator: Generator, shown: int = 8):
        self.generator, self.shown = generator, shown
        steps = len(generator.sampler.trajectory) - 1
        self.kept = set(torch.linspace(0, steps - 1, min(FRAMES, steps)).round().long().tolist())
        self.frames: list[Image.Image] = []

    def __call__(self, i: int, step: SamplingStep, x: Tensor, x0: Tensor) -> None:
        """Add a frame, if one is due at the i-th step."""
        if i in self.kept:
            rows = [to_rgb(self.generator.to_image(z[: self.shown])).cpu() for z in (x, x0)]
            picture = (tile(torch.stack(rows)) * 255).round().to(torch.uint8)
            self.frames.append(Image.fromarray(picture.movedim(0, -1).numpy()))

    def save(self, path: Path) -> None:
        """Write the GIF, if there was a step."""
        if not self.frames:
            return
        durations = [MILLISECONDS] * (len(self.frames) - 1) + [2000]
        with open_atomic(path) as file:
            self.frames[0].save(file, "GIF", save_all=True, append_images=self.frames[1:], duration=durations, loop=0)

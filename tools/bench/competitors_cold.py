"""Blur as in Cold Diffusion, with l-DAE and with arpitbansal297/Cold-Diffusion-Models (timed by interleaved.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from competitors import Work
from peers import loaded, use_site
from torch import Tensor, nn

from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.base import State
from ldae.diffusion.corruptions.blur import Blur
from ldae.diffusion.samplers import Degradation, ImprovedColdSampling, sample
from ldae.diffusion.schedules import Steps
from ldae.diffusion.trajectory import Prediction, build_trajectory

T = 50
FILE = "deblurring-diffusion-pytorch/deblurring_diffusion_pytorch/deblurring_diffusion_pytorch.py"
UNNEEDED = ("comet_ml", "apex", "cv2", "kornia", "imageio")


def pictures(batch: int) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, 32, 32) in [-1, 1] and a step for each, the last among them."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(T, (batch,), generator=generator)
    t[0] = T - 1
    return torch.rand(batch, 3, 32, 32, generator=generator) * 2 - 1, t


def cifar_blur() -> Blur:
    """Return the published blur of CIFAR-10."""
    return Blur(Steps(T), (3, 32, 32), kernel=11, first=0.35, step=0.01)


def blur(batch: int) -> Work:
    """Blur a batch with l-DAE, each image to its own step."""
    x, t = pictures(batch)
    corruption, level = cifar_blur(), Steps(T).at(t)
    return lambda: corruption.corrupt(x, level, State()), batch


def trajectory(batch: int) -> Work:
    """Sample all steps with l-DAE and an identity network."""
    x, _ = pictures(batch)
    corruption, schedule = cifar_blur(), Steps(T)
    visited = build_trajectory(schedule, torch.arange(T).flip(0))
    rule = ImprovedColdSampling().bind(Degradation(corruption, State()))
    x_T = corruption.at(x, visited[0].level(x), State())
    return lambda: sample(lambda z, step: Prediction(z), rule, x_T, visited, BatchGenerator([0])), batch


def official(folder: str, site: str | None) -> Any:
    """Load the official code with an identity network."""
    use_site(site)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]  # it asks for a GPU by name
    module = loaded(Path(folder) / FILE, UNNEEDED)
    return module.GaussianDiffusion(
        Echo(),
        image_size=32,
        device_of_kernel="cpu",
        timesteps=T,
        blur_routine="Special_6_routine",
        sampling_routine="x0_step_down",
    )


class Echo(nn.Module):
    """(x, t) -> x."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def official_blur(batch: int, folder: str, site: str | None) -> Work:
    """Blur the same batch with the official code."""
    x, t = pictures(batch)
    theirs = official(folder, site)
    return lambda: theirs.q_sample(x, t), batch


def official_trajectory(batch: int, folder: str, site: str | None) -> Work:
    """Sample the same trajectory with the official code, which first blurs the images."""
    x, _ = pictures(batch)
    theirs = official(folder, site)
    return lambda: theirs.sample(batch_size=batch, img=x), batch

"""Export of encoders by torch.export: a program from images in [0, 1] to features that torch alone runs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.export.encoder import Encoder


def program_of(encoder: Encoder, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Return the program of Encoder.forward, with a dynamic batch size.

    Args:
        encoder: on a CPU, in fp32.
        shape: (3, H, W) of its images.

    Raises:
        ConfigError: its input is noised; a program has no random numbers that are functions of the image.
    """
    if encoder.noised:
        raise ConfigError("noised", True, "cannot be exported: a graph draws no noise")
    example = torch.rand(2, *shape)
    return torch.export.export(encoder, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def write_program(path: Path, encoder: Encoder, shape: tuple[int, int, int]) -> None:
    """Write the program of an encoder, .pt2.

    Args, Raises: as of `program_of`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program_of(encoder, shape), path)


class ProgramFeatures:
    """Program of torch.export, loaded: images (B, 3, H, W) in [0, 1] -> features (B, D)."""

    def __init__(self, path: Path):
        self.module = torch.export.load(path).module()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features

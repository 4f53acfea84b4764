"""Classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ldae.core.errors import ConfigError
from ldae.core.types import Cond, NoiseLevel
from ldae.denoisers.base import Denoiser


class Guided(Denoiser):
    """eps(null) + s (eps(c) - eps(null)): two passes of a trained network (Eq. 6, arXiv 2207.12598, w = s - 1).

    All channels of the prediction are guided; a learned variance is taken from the conditional pass.
    s = 1 is the conditional network, s = 0 the unconditional one.

    Args:
        network: trained with label dropout.
        scale: s.
        predicted: channels of the prediction; the output may have more.
        channels: `all`, or 3 to compare with DiT's published figures, whose samplers guided the first three of
            four latent channels; s = 1.5 on three is equivalent to about 1.375 on all four.
    """

    def __init__(self, network: Denoiser, scale: float, predicted: int, channels: Literal["all", 3] = "all"):
        super().__init__()
        self.network, self.scale = network, scale
        self.guided = predicted if channels == "all" else channels
        self.layers, self.encoder_layer = network.layers, network.encoder_layer

    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """Predict with guidance: x_t (B, C, H, W) -> out (B, C', H', W').

        Raises:
            ConfigError: there is no label.
        """
        if cond is None or cond.label is None:
            raise ConfigError("label", None, "gives guidance nothing to go by; give a class for every image")
        conditional = self.network(x_t, level, cond)
        unconditional = self.network(x_t, level, replace(cond, label=None))[:, : self.guided]
        guided = unconditional + self.scale * (conditional[:, : self.guided] - unconditional)
        return torch.cat([guided, conditional[:, self.guided :]], dim=1)  # (B, C', H', W')

    def precompute(self, cond: Cond) -> Cond:
        """Return `cond` with the network's precomputed features."""
        return self.network.precompute(cond)

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Return the tokens of the conditional pass; guidance changes the output only."""
        return self.network.encode(x_t, level, cond, layers)

    def undo_zero_init(self) -> None:
        """Do so in the guided network."""
        self.network.undo_zero_init()

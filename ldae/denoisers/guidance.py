"""Classifier-free guidance: a network that exaggerates what the class changes."""

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

    All channels of the prediction are guided; what follows them, a learned variance, is the conditional pass's.
    s = 1 is the conditional network, s = 0 the unconditional one.

    Args:
        network: one that was trained with labels, some of them withheld.
        scale: s.
        predicted: channels of the prediction; the answer may have more.
        channels: `all`, or 3 to compare with DiT's published figures, whose samplers guided the first three of
            four latent channels; s = 1.5 on three was found to be worth about 1.375 on all four.
    """

    def __init__(self, network: Denoiser, scale: float, predicted: int, channels: Literal["all", 3] = "all"):
        super().__init__()
        self.network, self.scale = network, scale
        self.guided = predicted if channels == "all" else channels
        self.layers, self.encoder_layer = network.layers, network.encoder_layer

    def forward(self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None) -> Tensor:
        """x_t (B, C, H, W) -> out (B, C', H', W').

        Raises:
            ConfigError: there is no label to be guided by.
        """
        if cond is None or cond.label is None:
            raise ConfigError("label", None, "gives guidance nothing to go by; give a class for every image")
        message = self.network(x_t, level, cond)
        untold = self.network(x_t, level, replace(cond, label=None))[:, : self.guided]
        guided = untold + self.scale * (message[:, : self.guided] - untold)
        return torch.cat([guided, message[:, self.guided :]], dim=1)  # (B, C', H', W')

    def prepared(self, cond: Cond) -> Cond:
        return self.network.prepared(cond)

    def encode(
        self, x_t: Tensor, level: NoiseLevel, cond: Cond | None = None, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Tokens of the conditional pass: guidance acts on answers alone."""
        return self.network.encode(x_t, level, cond, layers)

    def undo_zero_init(self) -> None:
        self.network.undo_zero_init()

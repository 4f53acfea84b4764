"""The optimiser and the one place where a learning rate is scaled and scheduled."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from ldae.core.errors import ConfigError
from ldae.core.types import Fraction, NonNegative, Positive


class Optim(ABC):
    """Makes an optimiser and tells its learning rate at every step.

    Args:
        blr: base learning rate, for a batch of 256.
        warmup: share of all steps over which the rate rises linearly from 0.
        final: share of the peak rate that the cosine falls to.
    """

    def __init__(self, blr: float, warmup: float, final: float):
        self.blr, self.warmup, self.final = blr, warmup, final

    @abstractmethod
    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """An optimiser over what is trained of a network; `lr_scale` of a group, if it has one, multiplies its rate."""

    def peak(self, batch: int) -> float:
        """The highest learning rate: blr * batch / 256 (arXiv 1706.02677)."""
        return self.blr * batch / 256

    def rate(self, step: int, steps: int, batch: int) -> float:
        """The learning rate of step 0 <= step < steps: linear warm-up, then half a cosine."""
        warm = self.warmup * steps
        if step < warm:
            return self.peak(batch) * (step + 1) / math.ceil(warm)
        done = (step - warm) / max(1.0, steps - warm)
        return self.peak(batch) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)


class AdamW(Optim):
    """AdamW (arXiv 1711.05101), fused.

    Args: as Optim, and
        weight_decay: of all weight matrices; biases and vectors are not decayed.
        betas: two decay rates below 1.
    """

    def __init__(
        self,
        blr: Positive,
        weight_decay: NonNegative = 0.0,
        betas: tuple[Fraction, Fraction] = (0.9, 0.95),
        warmup: Fraction = 0.05,
        final: Fraction = 0.0,
    ):
        super().__init__(blr, warmup, final)
        if len(betas) != 2 or max(betas) >= 1:
            raise ConfigError("betas", betas, "must be two numbers below 1")
        self.weight_decay, self.betas = weight_decay, betas

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        groups = [group for group in self.groups(network) if group["params"]]
        return torch.optim.AdamW(groups, lr=self.blr, betas=self.betas, fused=True)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """What is decayed and what is not."""
        trained = [p for p in network.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]


class LayerDecay(AdamW):
    """AdamW with a rate that falls by a factor from each layer to the one before it (Sec. 4.1, arXiv 2106.08254).

    Args: as AdamW, and
        layer_decay: that factor; 1 for none.
    """

    def __init__(
        self,
        blr: Positive,
        weight_decay: NonNegative = 0.05,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        warmup: Fraction = 0.05,
        final: Fraction = 0.0,
        layer_decay: Fraction = 0.75,
    ):
        super().__init__(blr, weight_decay, betas, warmup, final)
        self.layer_decay = layer_decay

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Those of timm, which knows the layers of its networks; layer i of L + 1 has lr_scale layer_decay^(L - i)."""
        from timm.optim import param_groups_layer_decay

        free: set[str] = getattr(network, "no_weight_decay", set)()  # positions and the like
        return param_groups_layer_decay(network, self.weight_decay, free, layer_decay=self.layer_decay)

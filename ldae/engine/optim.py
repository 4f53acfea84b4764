"""Optimizers, and the scaling and schedule of the learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldae.core.errors import ConfigError
from ldae.core.types import Fraction, NonNegative, Positive
from ldae.engine.muon import MuonOptimizer


class Optim(ABC):
    """Base class of optimizer settings with a warm-up and cosine schedule.

    Args:
        blr: base learning rate, for a batch of 256.
        warmup: fraction of all steps over which the rate rises linearly from 0.
        final: final learning rate as a fraction of the peak.
    """

    def __init__(self, blr: float, warmup: float, final: float):
        self.blr, self.warmup, self.final = blr, warmup, final

    @abstractmethod
    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer of a network's trainable parameters; `lr_scale` of a group multiplies its rate."""

    def peak(self, batch: int) -> float:
        """Return the peak learning rate: blr * batch / 256 (arXiv 1706.02677)."""
        return self.blr * batch / 256

    def rate(self, step: int, steps: int, batch: int) -> float:
        """Return the learning rate of step 0 <= step < steps: linear warm-up, then half a cosine."""
        warmup_steps = self.warmup * steps
        if step < warmup_steps:
            return self.peak(batch) * (step + 1) / math.ceil(warmup_steps)
        fraction = (step - warmup_steps) / max(1.0, steps - warmup_steps)
        return self.peak(batch) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * fraction)) / 2)


class AdamW(Optim):
    """AdamW (arXiv 1711.05101), fused.

    Args: as Optim, and
        weight_decay: weight decay of matrices; biases and vectors have none.
        betas: decay rates of the two moments, below 1.
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
        """Return AdamW with weight decay on matrices alone."""
        groups = [group for group in self.groups(network) if group["params"]]
        return torch.optim.AdamW(groups, lr=self.blr, betas=self.betas, fused=True)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Return the parameter groups with and without weight decay."""
        trainable = [p for p in network.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]


class LayerDecay(AdamW):
    """AdamW with layer-wise learning rate decay (Sec. 4.1, arXiv 2106.08254).

    Args: as AdamW, and
        layer_decay: learning rate of a layer divided by that of the next; 1 for none.
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
        """Return timm's parameter groups by layer; layer i of L + 1 has lr_scale layer_decay^(L - i)."""
        from timm.optim import param_groups_layer_decay

        undecayed: set[str] = getattr(network, "no_weight_decay", set)()  # e.g. position embeddings
        return param_groups_layer_decay(network, self.weight_decay, undecayed, layer_decay=self.layer_decay)


class Muon(AdamW):
    """Muon for the matrices of transformer blocks, AdamW for every other parameter (arXiv 2502.16982).

    A step of Muon has the root mean square of an AdamW step (ldae.engine.muon), so that one learning rate serves both.
    The matrices of adaLN layers, embeddings and heads are AdamW's.

    Args: as AdamW, and
        momentum: decay rate of Muon's momentum (Nesterov), below 1.
        ratio: learning rate of the matrices over that of the other parameters.

    Raises:
        ConfigError: a decay rate is not below 1.
    """

    def __init__(
        self,
        blr: Positive,
        weight_decay: NonNegative = 0.0,
        betas: tuple[Fraction, Fraction] = (0.9, 0.95),
        warmup: Fraction = 0.05,
        final: Fraction = 0.0,
        momentum: Fraction = 0.95,
        ratio: Positive = 3.0,
    ):
        super().__init__(blr, weight_decay, betas, warmup, final)
        if momentum >= 1:
            raise ConfigError("momentum", momentum, "must be below 1")
        self.momentum, self.ratio = momentum, ratio

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer of a network's trainable parameters.

        Raises:
            ConfigError: the network has no transformer blocks with matrices.
        """
        chosen = {id(matrix): matrix for matrix in block_matrices(network)}
        if not chosen:
            name = type(network).__name__
            raise ConfigError(
                "part", "Muon", f"is for the matrices of transformer blocks, and {name} has none; use optim=adamw"
            )
        muon = MuonOptimizer(chosen.values(), self.blr, self.momentum, self.weight_decay)
        for group in muon.param_groups:
            group["lr_scale"] = self.ratio
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) not in chosen]} for group in self.groups(network)
        ]
        groups = [group for group in groups if group["params"]]
        adamw = [torch.optim.AdamW(groups, lr=self.blr, betas=self.betas, fused=True)] if groups else []
        return JointOptimizer([muon, *adamw])


def block_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Return the trainable matrices of the attention and the feed-forward networks of transformer blocks."""
    parts = [part for block in network.modules() for part in getattr(block, "hidden", list)()]
    return [p for part in parts for p in part.parameters() if p.ndim == 2 and p.requires_grad]


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers of disjoint parameters as one: their groups in order, and one state by parameter.

    Args:
        optimizers: optimizers that have not made a step.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        shared: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        self.state = shared
        for optimizer in optimizers:
            optimizer.state = shared

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step of each optimizer; return the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]
            optimizer.step()
        return loss


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer makes no step, without a wait for the device, where its tensor `found_inf` is 1."""
    if isinstance(optimizer, JointOptimizer):
        return all(map(can_skip, optimizer.optimizers))
    return isinstance(optimizer, MuonOptimizer) or bool(optimizer.defaults.get("fused"))

"""Muon: momentum whose matrices are replaced by their nearest semi-orthogonal ones.

Own code beside torch.optim.Muon, which iterates in bfloat16 on every processor, emulated on many CPUs, and one matrix
after another; this one iterates in float32 where bfloat16 is not native, on all
matrices of a shape at once, and on matrices that FSDP shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldae.engine.fsdp import gather_full, local_shard, shard_like
from ldae.engine.precision import multiplies_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of s, s^3 and s^5 (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon)
ITERATIONS = 5
EPS = 1e-7  # added to the norm of a matrix


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1: 5 Newton-Schulz iterations.

    Args:
        matrices: (count, rows, columns), of the dtype to iterate in.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the product x x^T is then the smaller one
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class MuonOptimizer(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices alone (arXiv 2502.16982).

    A step has the root mean square of an AdamW step: the semi-orthogonal matrix times 0.2 sqrt(max(rows, columns))
    (Eq. 4 there).

    Args:
        matrices: parameters of two axes.
        lr: learning rate.
        momentum: decay rate of the momentum.
        weight_decay: lr * weight_decay of a matrix is subtracted in a step.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtypes: dict[torch.device, torch.dtype] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step; none where the attribute `found_inf`, a tensor as of fused AdamW, is 1."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        keep = 1.0 if found_inf is None else 1 - found_inf
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            updates = self._updates(matrices, group["momentum"], found_inf)
            for shape in dict.fromkeys(update.shape for update in updates):
                rows = [i for i, update in enumerate(updates) if update.shape == shape]
                stacked = torch.stack([updates[i] for i in rows])
                directions = orthogonalise(stacked.to(self._dtype(stacked.device))).to(stacked.dtype)
                if found_inf is not None:
                    directions = directions * keep
                chosen = [local_shard(matrices[i]) for i in rows]
                shards = [local_shard(shard_like(matrices[i], d)) for i, d in zip(rows, directions, strict=True)]
                torch._foreach_mul_(chosen, 1 - group["lr"] * group["weight_decay"] * keep)
                torch._foreach_add_(chosen, shards, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _updates(self, matrices: Sequence[Tensor], momentum: float, found_inf: Tensor | None) -> list[Tensor]:
        """Return the Nesterov momentum of each matrix, whole, and update the momenta."""
        if not matrices:
            return []
        for matrix in matrices:
            state: dict[str, Any] = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [local_shard(self.state[matrix]["momentum_buffer"]) for matrix in matrices]
        gradients = [local_shard(matrix.grad) for matrix in matrices if matrix.grad is not None]
        if found_inf is not None:  # the momentum in place of the gradient leaves the momentum as it is
            gradients = _choose(found_inf > 0, buffers, gradients)
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        return [gather_full(update, matrix) for update, matrix in zip(nesterov, matrices, strict=True)]

    def _dtype(self, device: torch.device) -> torch.dtype:
        """Return the type of numbers to iterate in: bfloat16 where the device multiplies it natively."""
        if device not in self._dtypes:
            self._dtypes[device] = torch.bfloat16 if multiplies_bf16(str(device)) else torch.float32
        return self._dtypes[device]


def _choose(condition: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors `a` where the condition, (), holds, else `b`; one operation for each shape."""
    chosen: list[Tensor] = list(b)
    for shape in dict.fromkeys(x.shape for x in a):
        rows = [i for i, x in enumerate(a) if x.shape == shape]
        stacked = torch.where(condition, torch.stack([a[i] for i in rows]), torch.stack([b[i] for i in rows]))
        for i, x in zip(rows, stacked, strict=True):
            chosen[i] = x
    return chosen

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

from ldae.engine.fsdp import gather_full, shard_like
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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            for matrix, direction in zip(matrices, self._directions(matrices, group["momentum"]), strict=True):
                scale = 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(shard_like(matrix, direction.to(matrix.dtype)), alpha=-group["lr"] * scale)

    def _directions(self, matrices: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """Return the orthogonalised Nesterov momentum of each matrix, whole."""
        updates = []
        for matrix in matrices:
            assert matrix.grad is not None
            state: dict[str, Any] = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            buffer = state["momentum_buffer"]
            buffer.lerp_(matrix.grad, 1 - momentum)
            updates.append(gather_full(matrix.grad.lerp(buffer, momentum)))
        directions: list[Tensor] = [torch.empty(0)] * len(updates)
        for shape in dict.fromkeys(update.shape for update in updates):
            rows = [i for i, update in enumerate(updates) if update.shape == shape]
            stacked = torch.stack([updates[i] for i in rows])
            dtype = torch.bfloat16 if multiplies_bf16(str(stacked.device)) else torch.float32
            for i, direction in zip(rows, orthogonalise(stacked.to(dtype)), strict=True):
                directions[i] = direction
        return directions

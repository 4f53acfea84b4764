"""Transformer blocks: plain ones, and ones whose LayerNorms are steered by a condition (adaLN-Zero)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ldae.nn.attention import Attention

LN_EPS = 1e-6
Gelu = Literal["exact", "tanh"]
TORCHS_NAME = {"exact": "none", "tanh": "tanh"}  # of the approximation in a GELU


class Mlp(nn.Module):
    """Linear, GELU, Linear; parameters named as timm's. On a CPU the exact GELU beats the tanh form, which is DiT's."""

    def __init__(self, width: int, hidden: int, gelu: Gelu = "exact"):
        super().__init__()
        self.approximate = TORCHS_NAME[gelu]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """A pre-norm ViT block (Eq. 2 and 3, arXiv 2010.11929); parameters named as timm's.

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward network over D.
    """

    compiles = True  # torch.compile works block by block: seconds instead of minutes

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, int(mlp_ratio * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AdaLN(nn.Module):
    """`n` vectors of `width` from a condition: the shifts, scales and gates of one block.

    Zero at the start, so that a new block is the identity.
    """

    def __init__(self, cond_width: int, width: int, n: int):
        super().__init__()
        self.n = n
        self.linear = nn.Linear(cond_width, n * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """(B, cond_width) -> n times (B, 1, D)."""
        return self.linear(F.silu(c)).unsqueeze(1).chunk(self.n, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then scale and shift: (B, N, D) with (B, 1, D) -> (B, N, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS) * (1 + scale) + shift


class ConditionedBlock(nn.Module):
    """A ViT block with adaLN-Zero (Fig. 3, arXiv 2212.09748).

    Args:
        width: D.
        heads: attention heads.
        cond_width: width of the condition.
        mlp_ratio: hidden width of the feed-forward network over D.
        gelu: the function itself or its tanh form.
    """

    compiles = True  # torch.compile works block by block: seconds instead of minutes

    def __init__(self, width: int, heads: int, cond_width: int, mlp_ratio: float = 4.0, gelu: Gelu = "exact"):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(mlp_ratio * width), gelu)
        self.ada = AdaLN(cond_width, width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, D), c (B, cond_width) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c)
        x = x + gate1 * self.attn(modulate(x, shift1, scale1))
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))


class ConditionedHead(nn.Module):
    """LayerNorm steered by a condition, then a linear layer to the numbers of each token; zero at the start."""

    def __init__(self, width: int, cond_width: int, out: int):
        super().__init__()
        self.ada = AdaLN(cond_width, width, 2)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, D), c (B, cond_width) -> (B, N, out)."""
        shift, scale = self.ada(c)
        return self.linear(modulate(x, shift, scale))

"""Transformer blocks, plain and with adaLN-Zero conditioning."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ldae.nn.attention import Attention

LN_EPS = 1e-6
Gelu = Literal["exact", "tanh"]
APPROXIMATE = {"exact": "none", "tanh": "tanh"}  # argument of F.gelu


class Mlp(nn.Module):
    """Linear, GELU, Linear; parameters named as timm's.

    Args:
        width: D.
        hidden: hidden width.
        gelu: exact GELU, faster on a CPU, or DiT's tanh approximation.
    """

    def __init__(self, width: int, hidden: int, gelu: Gelu = "exact"):
        super().__init__()
        self.approximate = APPROXIMATE[gelu]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to each token, (B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Pre-norm ViT block (Eq. 2 and 3, arXiv 2010.11929); parameters named as timm's.

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP divided by D.
    """

    compiles = True  # torch.compile works block by block: seconds instead of minutes

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, int(mlp_ratio * width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def hidden(self) -> tuple[nn.Module, ...]:
        """Return the modules whose matrices map hidden tokens to hidden tokens, for optimizers of matrices."""
        return self.attn, self.mlp


class AdaLN(nn.Module):
    """SiLU and linear layer from a condition to the shifts, scales and gates of a block (adaLN-Zero).

    Models initialise it to zero, so that a new block is the identity.

    Args:
        cond_width: width of the condition.
        width: D.
        n: number of vectors of width D.
    """

    def __init__(self, cond_width: int, width: int, n: int):
        super().__init__()
        self.n = n
        self.linear = nn.Linear(cond_width, n * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return `n` modulation vectors, (B, cond_width) -> n times (B, 1, D)."""
        return self.linear(F.silu(c)).unsqueeze(1).chunk(self.n, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply LayerNorm without parameters, then scale and shift, to (B, N, D) tokens.

    Args:
        x: the tokens.
        shift, scale: (B, 1, D), or (1, 1, D) for all images, which are weights of the LayerNorm then: one pass over
            the tokens in place of three.
    """
    if len(scale) > 1:
        return F.layer_norm(x, x.shape[-1:], eps=LN_EPS) * (1 + scale) + shift
    weight, bias = (v.flatten().to(x.dtype) for v in (1 + scale, shift))
    return F.layer_norm(x, x.shape[-1:], weight, bias, LN_EPS)


class ConditionedBlock(nn.Module):
    """ViT block with adaLN-Zero (Fig. 3, arXiv 2212.09748).

    Args:
        width: D.
        heads: attention heads.
        cond_width: width of the condition.
        mlp_ratio: hidden width of the MLP divided by D.
        gelu: exact GELU or its tanh approximation.
    """

    compiles = True  # torch.compile works block by block: seconds instead of minutes

    def __init__(self, width: int, heads: int, cond_width: int, mlp_ratio: float = 4.0, gelu: Gelu = "exact"):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(mlp_ratio * width), gelu)
        self.ada = AdaLN(cond_width, width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Apply the block to x (B, N, D) with the condition c (B, cond_width); return (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c)
        x = x + gate1 * self.attn(modulate(x, shift1, scale1))
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))

    def hidden(self) -> tuple[nn.Module, ...]:
        """Return the modules whose matrices map hidden tokens to hidden tokens, for optimizers of matrices."""
        return self.attn, self.mlp


class ConditionedHead(nn.Module):
    """LayerNorm modulated by a condition, then a linear layer: DiT's output head.

    Args:
        width: D.
        cond_width: width of the condition.
        out: outputs per token.
    """

    def __init__(self, width: int, cond_width: int, out: int):
        super().__init__()
        self.ada = AdaLN(cond_width, width, 2)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the outputs of tokens x (B, N, D) with the condition c (B, cond_width), (B, N, out)."""
        shift, scale = self.ada(c)
        return self.linear(modulate(x, shift, scale))

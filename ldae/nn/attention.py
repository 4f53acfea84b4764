"""Multi-head self-attention."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention (Sec. 3.2, arXiv 1706.03762); parameters named as timm's.

    On CUDA it calls torch's fused kernel. On a CPU it computes the explicit products, since the backward pass of the
    fused kernel is about five times slower there in bfloat16.

    Args:
        width: D, divisible by `heads`.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output, (B, N, D) -> (B, N, D)."""
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads).unbind(0)
        if x.is_cuda:
            out = F.scaled_dot_product_attention(q, k, v)  # (B, h, N, c)
        else:
            out = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1) @ v  # (B, h, N, c)
        return self.proj(rearrange(out, "b h n c -> b n (h c)"))  # (B, N, D)

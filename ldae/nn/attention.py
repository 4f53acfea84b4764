"""Multi-head self-attention, and the recording of its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention (Sec. 3.2, arXiv 1706.03762); parameters named as timm's.

    It calls torch's fused kernel on CUDA and, in fp32, on a CPU; else it computes the explicit products: in bf16 that
    kernel, above all its backward pass, is slower on a CPU.

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
        B, N, D = x.shape  # torch.compile would trace einops's parser, which takes longer than the rest of a block
        q, k, v = (
            self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )  # (B, h, N, c) each
        if q.is_cuda or (q.device.type == "cpu" and q.dtype == torch.float32):
            out = F.scaled_dot_product_attention(q, k, v)  # (B, h, N, c)
        else:
            out = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1) @ v  # (B, h, N, c)
        return self.proj(out.transpose(1, 2).reshape(B, N, D))


Summary = TypeVar("Summary")


@contextlib.contextmanager
def recorded_attention(
    modules: Mapping[int, nn.Module], summarise: Callable[[Tensor], Summary]
) -> Iterator[dict[int, Summary]]:
    """Record the attention weights of modules in the passes that the block makes; the passes stay as they are.

    Args:
        modules: {layer: `Attention`, or one of timm with the same parameters}.
        summarise: function from the weights of a pass, (B, heads, N, N) with rows that sum to 1, to what is kept.

    Yields:
        {layer: summary of the last pass}, filled by the passes.
    """
    summaries: dict[int, Summary] = {}

    def hook(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            with torch.no_grad():
                summaries[layer] = summarise(attention_weights(module, inputs[0]))

        return record

    handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in modules.items()]
    try:
        yield summaries
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(attention: Any, x: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(c)) of tokens x (B, N, D) in a module with timm's names, (B, heads, N, N)."""
    heads = attention.heads if isinstance(attention, Attention) else attention.num_heads
    q, k, _ = rearrange(attention.qkv(x), "b n (three h c) -> three b h n c", three=3, h=heads).unbind(0)
    if not isinstance(attention, Attention):
        q, k = attention.q_norm(q), attention.k_norm(k)
    return torch.softmax((q * attention.scale) @ k.transpose(-2, -1), dim=-1)

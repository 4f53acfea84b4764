"""Counted FLOP depend on the network, not on the kernels that compute it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ldae.engine.flop import count_flop
from ldae.nn.attention import Attention

B, N, D = 2, 16, 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fused", "explicit"])
def test_a_training_step_of_attention_has_the_flop_of_its_products(dtype):
    attention, x = Attention(D, 3).to(dtype), torch.randn(B, N, D, dtype=dtype, requires_grad=True)
    flop = sum(count_flop(lambda: attention(x).sum().backward()).values())
    linear, products = 4 * 2 * B * N * D * D, 2 * 2 * B * N * N * D  # qkv and proj; q k^T and its product with v
    assert flop == 3 * (linear + products)  # one pass forward, and two products in the backward pass for each


def test_the_kernel_is_chosen_anew_after_the_count():
    q = torch.randn(1, 1, 8, 8)
    count_flop(lambda: F.scaled_dot_product_attention(q, q, q))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        F.scaled_dot_product_attention(q, q, q)
    assert any("flash_attention_for_cpu" in event.name for event in profile.events())


def test_a_call_without_products_has_none():
    assert sum(count_flop(lambda: torch.ones(3) + 1).values()) == 0

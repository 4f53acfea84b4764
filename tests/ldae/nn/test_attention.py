"""Attention is the same function by torch's fused kernel and by explicit products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from ldae.nn.attention import Attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def run(attention, x, weight):
    """Output and gradient of its weighted sum, in float32."""
    x = x.clone().requires_grad_()
    out = attention(x)
    (out * weight).sum().backward()
    return out.detach().float(), x.grad.float()


def kernels(call):
    """Return the names of the operations of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.name for event in profile.events()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients_are_those_of_float64(dtype):
    torch.manual_seed(0)
    attention, x, weight = Attention(24, 3), torch.randn(2, 65, 24), torch.randn(2, 65, 24)
    expected = run(copy.deepcopy(attention).double(), x.double(), weight.double())  # explicit products
    for value, reference in zip(run(attention.to(dtype), x.to(dtype), weight.to(dtype)), expected, strict=True):
        assert (value - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()


def test_the_explicit_products_are_torchs_attention():
    torch.manual_seed(0)
    attention, x = Attention(24, 3).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = attention.qkv(x).reshape(2, 7, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 7, 24)
    assert torch.allclose(attention(x), attention.proj(out), atol=1e-12)


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, True), (torch.bfloat16, False), (torch.float64, False)])
def test_the_kernel_is_fused_in_single_precision(dtype, fused):
    attention, x = Attention(24, 3).to(dtype), torch.randn(2, 16, 24, dtype=dtype)
    assert any("flash_attention" in name for name in kernels(lambda: attention(x))) is fused

"""Floating-point operations of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flop(call: Callable[[], object]) -> Mapping[Any, int]:
    """Return the FLOP of a call by kind of operation, from torch's counter: matrix products and convolutions.

    Attention is counted as its two products. Fused kernels compute one of them again in the backward pass, which would
    give one network different FLOP on different devices and in different precisions.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_flop_counts().get("Global", {})

"""Numbers by step, looked up where they are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # table -> {device: its copy there}


def taken(table: Tensor, index: Tensor) -> Tensor:
    """table[index] on the device of `index`, (...) int64.

    A table goes to each device once: copying steps to the host instead would make it wait for the device at every step.
    """
    if index.device == table.device:
        return table[index]
    copies: dict[torch.device, Tensor] = _COPIES.setdefault(table, {})
    if index.device not in copies:
        copies[index.device] = table.to(index.device)
    return copies[index.device][index]

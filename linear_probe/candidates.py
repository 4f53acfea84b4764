"""The largest inner products, found among candidates that bf16 proposes and float32 decides between."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

SPARE = 12  # candidates beyond those that are asked for
GROUP = 16  # entries of which the largest product stands for all, at first
BLOCK = 256  # queries at once


# instruction sets without products of bf16, as the variables that limit oneDNN name them
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")


def multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for products of bf16, and no limit keeps oneDNN from using them.

    With the instructions a product takes 0.4 of the time in float32, emulated 2 to 100 times.
    """
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    limits = {os.environ.get(name, "").lower() for name in LIMITS}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")) and not limits & set(WITHOUT_BF16)


class Candidates:
    """A bank whose products are taken in bf16, where a CPU multiplies those faster than float32.

    An entry is missed if rounding, 2^-9 of each number, moves it behind `SPARE` others that are really smaller. To make
    that rare the mean entry is taken off first: it adds the same to all products of a query. What is returned is
    computed in float32 again.

    Args:
        entries: (N, D) float32.
        count: K, how many are asked for at a time.
    """

    def __init__(self, entries: Tensor, count: int):
        self.entries, self.count = entries, count
        self.most = min(count + SPARE, len(entries))
        self.groups = -(-len(entries) // GROUP)
        whole = torch.zeros(GROUP * self.groups, entries.shape[1], dtype=torch.bfloat16)
        whole[: len(entries)] = entries - entries.mean(0)
        self.rounded = whole

    def search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) float32 -> the K largest products (M, K) float32, falling, and their entries (M, K) int64."""
        found = [self._of(part) for part in queries.split(BLOCK)]
        return torch.cat([products for products, _ in found]), torch.cat([rows for _, rows in found])

    def _of(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        rough = queries.bfloat16() @ self.rounded.T  # (M, GROUP * groups)
        rough[:, len(self.entries) :] = -torch.inf
        first = rough.view(-1, GROUP, self.groups).amax(1)  # entries g, g + groups, ... are a group
        _, best = first.topk(min(self.most, self.groups), dim=1)
        members = best[:, None] + self.groups * torch.arange(GROUP)[:, None]  # (M, GROUP, most)
        rows = members.flatten(1)
        rows = rows.gather(1, rough.gather(1, rows).topk(self.most, dim=1).indices)
        exact = torch.bmm(self.entries[rows], queries[:, :, None])[:, :, 0]
        products, order = exact.topk(self.count, dim=1)
        return products, rows.gather(1, order)

"""Weighted nearest neighbours with cosine similarity (Sec. 3.4 of arXiv 1805.01978; Sec. 4.1 of arXiv 2104.14294)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

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


PART = 65536  # bank entries that are normalised and searched at once


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    classes: int,
    temperature: float = 0.07,
    block: int = 4096,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> dict[int, Tensor]:
    """Classes by a vote of the k most similar bank entries, each with weight exp(similarity / temperature).

    One search serves every k. Exact (faiss, brute force), or where that is faster by candidates in bf16, which leave
    99.95 % of predictions as they are (see `nearest`). Beside its arguments it keeps a part of the bank in memory.

    Args:
        bank: (N, D) float32 features; normalised here.
        labels: (N,) int64 in [0, classes).
        queries: (M, D) float32.
        ks: numbers of neighbours; those above N are cut to N.
        classes: number of classes.
        temperature: of the weights.
        block: queries that vote at once.
        scale: of bank and queries before they are normalised, (n, D) -> (n, D').

    Returns:
        {k: (M,) int64 predicted classes}.
    """
    similarity, neighbour = nearest(bank, queries, min(max(ks), len(bank)), scale=scale)
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for alike, rows in zip(similarity.split(block), neighbour.split(block), strict=True):
        weight, label = torch.exp(alike / temperature), labels[rows]  # (m, most)
        for k in ks:
            votes = torch.zeros(len(rows), classes).scatter_add_(1, label[:, :k], weight[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def nearest(
    bank: Tensor,
    queries: Tensor,
    count: int,
    part: int = PART,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The bank entries with the largest cosine similarity to each query, a part of the bank after the other.

    By faiss, all in float32; or where it pays (`by_candidates`) by `Candidates`, whose similarities are float32 too but
    which may now and then take a neighbour for another that is as near within 1e-3.

    Args:
        bank: (N, D) float32.
        queries: (M, D) float32.
        count: K, how many of them, at most N.
        part: entries of a part.
        scale: as in `knn_predict`.

    Returns:
        Similarities (M, K) float32, falling, and rows of the bank (M, K) int64.
    """
    requested = _unit(queries, scale)
    search = _proposed if by_candidates(len(requested), requested.shape[1], count) else _searched
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), part):
        entries = _unit(bank[start : start + part], scale)
        alike, where = search(entries, requested, min(count, len(entries)))
        best, rows = torch.cat([best, alike], 1), torch.cat([rows, where + start], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


def by_candidates(queries: int, dimensions: int, count: int) -> bool:
    """Return whether candidates in bf16 are faster: products outweigh sorting and preparation."""
    return queries >= 1024 and dimensions >= 192 and count <= 32 and multiplies_bf16()


def _searched(entries: Tensor, requested: Tensor, count: int) -> tuple[Tensor, Tensor]:
    faiss.omp_set_num_threads(torch.get_num_threads())
    found = faiss.knn(requested.numpy(), entries.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    alike, where = (torch.from_numpy(array) for array in found)
    return alike, where


def _proposed(entries: Tensor, requested: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return Candidates(entries, count).search(requested)


def _unit(x: Tensor, scale: Callable[[Tensor], Tensor] | None) -> Tensor:
    return F.normalize(x if scale is None else scale(x), dim=1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * (predicted == labels).double().mean().item()

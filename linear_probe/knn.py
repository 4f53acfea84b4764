"""Classify by weighted k nearest neighbours with cosine similarity (Sec. 3.4 of arXiv 1805.01978, arXiv 2104.14294)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

SPARE = 12  # candidates in addition to the K results
GROUP = 16  # entries per group; the first pass ranks groups by their largest product
BLOCK = 256  # queries per search


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
    """Search for the largest inner products by candidates in bf16, where a CPU multiplies bf16 faster than float32.

    Rounding has a relative error of 2^-9 per number; an entry is missed if it moves behind `SPARE` smaller ones.
    Subtracting the mean entry first, which shifts all products of a query equally, makes this rare. The returned
    products are computed in float32.

    Args:
        entries: (N, D) float32.
        count: number of results K.
    """

    def __init__(self, entries: Tensor, count: int):
        self.entries, self.count = entries, count
        self.most = min(count + SPARE, len(entries))
        self.groups = -(-len(entries) // GROUP)
        whole = torch.zeros(GROUP * self.groups, entries.shape[1], dtype=torch.bfloat16)
        whole[: len(entries)] = entries - entries.mean(0)
        self.rounded = whole

    def search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest K products (M, K), descending, and their entries (M, K) int64, of (M, D) queries."""
        blocks = [self._search_block(block) for block in queries.split(BLOCK)]
        return torch.cat([products for products, _ in blocks]), torch.cat([rows for _, rows in blocks])

    def _search_block(self, queries: Tensor) -> tuple[Tensor, Tensor]:
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


PART = 65536  # bank entries normalised and searched at a time


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
    """Classify by a vote of the k most similar bank entries, each with weight exp(similarity / temperature).

    One search serves every k. It is exact (faiss, brute force) or, where faster, by candidates in bf16, which leave
    99.95 % of predictions unchanged (see `nearest`). In addition to its arguments it holds a part of the bank in
    memory.

    Args:
        bank: (N, D) float32 features; normalised here.
        labels: (N,) int64 in [0, classes).
        queries: (M, D) float32.
        ks: numbers of neighbours, >= 1; cut to N.
        classes: number of classes.
        temperature: temperature of the weights, > 0.
        block: queries per vote.
        scale: map of bank and queries before they are normalised, (n, D) to (n, D').

    Returns:
        {k: (M,) int64 predicted classes}.
    """
    similarity, neighbour = nearest(bank, queries, min(max(ks), len(bank)), scale=scale)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for similarities, rows in zip(similarity.split(block), neighbour.split(block), strict=True):
        weight, label = torch.exp(similarities / temperature), labels[rows]  # (m, most)
        for k in ks:
            votes = torch.zeros(len(rows), classes).scatter_add_(1, label[:, :k], weight[:, :k])
            predicted[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def nearest(
    bank: Tensor,
    queries: Tensor,
    count: int,
    part: int = PART,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the bank entries with the largest cosine similarity to each query, searching the bank part by part.

    Uses faiss in float32 or, where faster (`by_candidates`), `Candidates`, whose similarities are float32 too but which
    may swap neighbours whose similarities differ by less than 1e-3.

    Args:
        bank: (N, D) float32.
        queries: (M, D) float32.
        count: number of neighbours K, in [1, N].
        part: entries per part of the bank.
        scale: as in `knn_predict`.

    Returns:
        Similarities (M, K) float32, descending, and rows of the bank (M, K) int64.
    """
    normalised = _normalise(queries, scale)
    search = _search_candidates if by_candidates(len(normalised), normalised.shape[1], count) else _search_exact
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), part):
        entries = _normalise(bank[start : start + part], scale)
        similarity, index = search(entries, normalised, min(count, len(entries)))
        best, rows = torch.cat([best, similarity], 1), torch.cat([rows, index + start], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


def by_candidates(queries: int, dimensions: int, count: int) -> bool:
    """Return whether candidates in bf16 are faster: products outweigh sorting and preparation."""
    return queries >= 1024 and dimensions >= 192 and count <= 32 and multiplies_bf16()


def _search_exact(entries: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    faiss.omp_set_num_threads(torch.get_num_threads())
    products, rows = faiss.knn(queries.numpy(), entries.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(products), torch.from_numpy(rows)


def _search_candidates(entries: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return Candidates(entries, count).search(queries)


def _normalise(x: Tensor, scale: Callable[[Tensor], Tensor] | None) -> Tensor:
    return F.normalize(x if scale is None else scale(x), dim=1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent of predicted classes (N,) against labels (N,)."""
    return 100 * (predicted == labels).double().mean().item()

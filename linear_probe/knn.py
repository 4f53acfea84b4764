"""Weighted nearest neighbours with cosine similarity (Sec. 3.4 of arXiv 1805.01978; Sec. 4.1 of arXiv 2104.14294)."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    classes: int,
    temperature: float = 0.07,
    block: int = 4096,
) -> dict[int, Tensor]:
    """Classes by a vote of the k most similar bank entries, each with weight exp(similarity / temperature).

    One search serves every k. Exact (faiss IndexFlatIP).

    Args:
        bank: (N, D) float32 features; normalised here.
        labels: (N,) int64 in [0, classes).
        queries: (M, D) float32.
        ks: numbers of neighbours; those above N are cut to N.
        classes: number of classes.
        temperature: of the weights.
        block: queries that are searched at once.

    Returns:
        {k: (M,) int64 predicted classes}.
    """
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(F.normalize(bank, dim=1).numpy())
    most = min(max(ks), len(bank))
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in queries.split(block):
        similarity, neighbour = index.search(F.normalize(part, dim=1).numpy(), most)
        weight = torch.exp(torch.from_numpy(similarity) / temperature)  # (m, most)
        label = labels[torch.from_numpy(neighbour)]  # (m, most)
        for k in ks:
            votes = torch.zeros(len(part), classes).scatter_add_(1, label[:, :k], weight[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in percent."""
    return 100 * (predicted == labels).double().mean().item()

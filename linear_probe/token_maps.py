"""Turn patch tokens and attention into maps of an image: principal components as colours, weights of patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def pca_rgb(tokens: Tensor) -> tuple[Tensor, float]:
    """Return the first three principal components of patch tokens as colours (Fig. 1, arXiv 2304.07193).

    The components are those of the patches of all images together, so that equal colours mean similar tokens; no
    background is removed. Each component is scaled from its minimum to its maximum, with the sign that makes its third
    moment positive.

    Args:
        tokens: (B, N, D) tokens of N patches.

    Returns:
        (B, N, 3) in [0, 1], 1/2 where a component is constant, and the fraction of the variance in the three.
    """
    B, N, D = tokens.shape
    x = tokens.double().reshape(B * N, D)
    x = x - x.mean(0)
    U, S, _ = torch.linalg.svd(x, full_matrices=False)
    variance = float(S.square().sum())
    if variance <= 1e-12 * max(1.0, float(tokens.double().square().sum())):
        return torch.full((B, N, 3), 0.5), 0.0
    components = torch.zeros(B * N, 3, dtype=torch.float64, device=x.device)
    count = min(3, len(S))
    components[:, :count] = U[:, :count] * S[:count]
    components = components * torch.where(components.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = components.amin(0), components.amax(0)
    span = high - low
    constant = span <= 1e-9 * span.max()
    colours = torch.where(constant, 0.5, (components - low) / span.masked_fill(constant, 1))
    return colours.reshape(B, N, 3).float().cpu(), float(S[:count].square().sum()) / variance


@dataclass(frozen=True)
class AttentionSummary:
    """Attention of one layer, reduced to maps over the patches.

    Weights are multiples of those of uniform attention: 1 everywhere if every key has the same weight.

    Attributes:
        received: (B, h, N) weights of the patches, from the class token if there is one, else mean over all queries.
        of_query: (B, h, N) weights of the patches from one patch.
        entropy: entropy of the weights over that of uniform ones, mean over heads and patch queries; in [0, 1].
        distance: distance from a patch to the patches that it attends to, in patches, weighted, mean over heads and
            queries (App. D.7, arXiv 2010.11929); uniform attention on h x w patches has about 0.52 of the side.
    """

    received: Tensor
    of_query: Tensor
    entropy: float
    distance: float


def summarise_attention(weights: Tensor, grid: tuple[int, int], query: int, prefix: int = 0) -> AttentionSummary:
    """Reduce the attention of a layer to maps and two numbers.

    Args:
        weights: (B, heads, M, M) probabilities, the last axis sums to 1; M = prefix + N.
        grid: (h, w) patches, N = h w, in rows.
        query: number of the patch of `of_query`, in [0, N).
        prefix: number of class and register tokens in front; the first is the class token.
    """
    A = weights.float()
    M = A.shape[-1]
    patches = A[:, :, prefix:]  # (B, heads, N, M), of patch queries
    received = A[:, :, 0] if prefix else patches.mean(2)
    entropy = torch.special.entr(patches).sum(-1).mean() / math.log(M) if M > 1 else torch.zeros(())
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float().to(A.device)  # (N, 2)
    among = patches[..., prefix:]
    among = among / among.sum(-1, keepdim=True).clamp(min=1e-12)
    distance = (among * torch.cdist(places, places)).sum(-1).mean()
    received, of_query = (M * x[..., prefix:].cpu() for x in (received, patches[:, :, query]))
    return AttentionSummary(received, of_query, float(entropy), float(distance))

"""A linear head on patch tokens that tells figure from ground at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseHead:
    """Binary logistic regression on tokens, its logits enlarged bilinearly to pixels (as Sec. 7.4 of arXiv 2304.07193).

    Tokens are standardised by their own moments first. Minimises the mean binary cross-entropy over pixels plus
    penalty / 2 ||w||^2; the bias goes free. Convex, by L-BFGS from 0.

    Args:
        tokens: (M, N, D) float32 of M images, N = h w in rows.
        masks: (M, 1, H, W), 0 or 1.
        grid: (h, w).
        penalty: of the squared weights.
        iterations: of L-BFGS, at most.
    """

    def __init__(self, tokens: Tensor, masks: Tensor, grid: tuple[int, int], penalty: float, iterations: int = 200):
        self.grid, self.size = grid, (int(masks.shape[2]), int(masks.shape[3]))
        spread, self.centre = torch.var_mean(tokens.flatten(0, 1), dim=0, correction=0)
        self.scale = (spread + 1e-8).rsqrt()
        self.weight, self.bias = torch.zeros(tokens.shape[2]), torch.zeros(1)
        z = self._standardised(tokens)
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        rule = torch.optim.LBFGS(parameters, max_iter=iterations, tolerance_change=1e-9, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            rule.zero_grad()
            found = F.binary_cross_entropy_with_logits(self._logits(z), masks)
            total = found + penalty / 2 * self.weight.square().sum()
            total.backward()
            return total

        rule.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens (M, N, D) -> probability that a pixel is figure, (M, 1, H, W)."""
        return torch.sigmoid(self._logits(self._standardised(tokens)))

    def _standardised(self, tokens: Tensor) -> Tensor:
        return (tokens - self.centre) * self.scale

    def _logits(self, z: Tensor) -> Tensor:
        low = (z @ self.weight + self.bias).reshape(-1, 1, *self.grid)  # (M, 1, h, w)
        return F.interpolate(low, size=self.size, mode="bilinear", align_corners=False)

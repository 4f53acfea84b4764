"""Segment figure from ground by a linear head on patch tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseHead:
    """Binary logistic regression on tokens with bilinearly upsampled logits (as Sec. 7.4 of arXiv 2304.07193).

    Standardises tokens by their moments over the training images. Minimises the mean binary cross-entropy over pixels
    plus penalty / 2 ||w||^2, without a penalty of the bias, by L-BFGS from 0; the problem is convex.

    Args:
        tokens: (M, N, D) float32 patch tokens of M training images, N = h w in row-major order.
        masks: (M, 1, H, W), 0 or 1.
        grid: (h, w), the grid of patches.
        penalty: L2 penalty of the weights, >= 0.
        iterations: maximum number of iterations of L-BFGS.
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
            cross_entropy = F.binary_cross_entropy_with_logits(self._logits(z), masks)
            total = cross_entropy + penalty / 2 * self.weight.square().sum()
            total.backward()
            return total

        rule.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the probability of figure at every pixel, (M, 1, H, W), from tokens (M, N, D)."""
        return torch.sigmoid(self._logits(self._standardised(tokens)))

    def _standardised(self, tokens: Tensor) -> Tensor:
        return (tokens - self.centre) * self.scale

    def _logits(self, z: Tensor) -> Tensor:
        low = (z @ self.weight + self.bias).reshape(-1, 1, *self.grid)  # (M, 1, h, w)
        return F.interpolate(low, size=self.size, mode="bilinear", align_corners=False)

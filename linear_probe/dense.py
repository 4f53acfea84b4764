"""Segment images by a linear head on patch tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseHead:
    """Logistic regression on tokens with bilinearly upsampled logits (as Sec. 7.4 of arXiv 2304.07193).

    Standardises tokens by their moments over the training images. Minimises the mean cross-entropy over pixels plus
    penalty / 2 ||W||^2, without a penalty of the biases, by L-BFGS from 0; the problem is convex. Pixels of no class do
    not count.

    Args:
        tokens: (M, N, D) float32 patch tokens of M training images, N = h w in row-major order.
        masks: (M, K, H, W), 0 or 1: a foreground where K = 1, else one-hot classes, all 0 for pixels of no class.
        grid: (h, w), the grid of patches.
        penalty: L2 penalty of the weights, >= 0.
        iterations: maximum number of iterations of L-BFGS.

    Attributes:
        weight: (D, K).
        bias: (K,).
    """

    def __init__(self, tokens: Tensor, masks: Tensor, grid: tuple[int, int], penalty: float, iterations: int = 200):
        self.grid, self.size = grid, (int(masks.shape[2]), int(masks.shape[3]))
        spread, self.centre = torch.var_mean(tokens.flatten(0, 1), dim=0, correction=0)
        self.scale = (spread + 1e-8).rsqrt()
        self.weight, self.bias = torch.zeros(tokens.shape[2], masks.shape[1]), torch.zeros(masks.shape[1])
        z = self._standardised(tokens)
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        rule = torch.optim.LBFGS(parameters, max_iter=iterations, tolerance_change=1e-9, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            rule.zero_grad()
            total = cross_entropy(self._logits(z), masks) + penalty / 2 * self.weight.square().sum()
            total.backward()
            return total

        rule.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the probabilities at every pixel, (M, K, H, W), from tokens (M, N, D): of the foreground if K = 1."""
        logits = self._logits(self._standardised(tokens))
        return torch.sigmoid(logits) if logits.shape[1] == 1 else logits.softmax(1)

    def _standardised(self, tokens: Tensor) -> Tensor:
        return (tokens - self.centre) * self.scale

    def _logits(self, z: Tensor) -> Tensor:
        low = (z @ self.weight + self.bias).mT.reshape(len(z), -1, *self.grid)  # (M, K, h, w)
        return F.interpolate(low, size=self.size, mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pixels that have a class.

    Args:
        logits: (M, K, H, W); of a foreground where K = 1.
        masks: as for `DenseHead`.
    """
    if masks.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, masks)
    return -(logits.log_softmax(1) * masks).sum() / masks.sum().clamp(min=1)

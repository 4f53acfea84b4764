"""The residual-in-residual dense network of super-resolution (Sec. 3.1, arXiv 1809.00219), as an image encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.types import Count, Natural

SLOPE = 0.2  # of the leaky ReLU below 0
RESIDUAL = 0.2  # what a block's result is multiplied by before its input is added
SMALL = 0.1  # what the weights of dense blocks are multiplied by at the start


class DenseBlock(nn.Module):
    """Five conv3, each reading all that came before it; 0.2 times the last, and the input added.

    Args:
        width: channels in and out.
        growth: channels that each of the first four adds.
    """

    def __init__(self, width: int, growth: int):
        super().__init__()
        outs = [growth] * 4 + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + k * growth, out, 3, padding=1) for k, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        *growing, last = self.convs
        seen = x
        for conv in growing:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)  # (B, C + k growth, H, W)
        return x + RESIDUAL * last(seen)


class RRDB(nn.Module):
    """Three dense blocks; 0.2 times their result, and the input added."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + RESIDUAL * self.dense(x)


class RRDBNet(nn.Module):
    """G(I) of SegDiff: an image as a feature map of the same size (Sec. 3, arXiv 2112.00390).

    conv3, N blocks and a conv3 around which the input passes, conv3 and leaky ReLU, conv3. Weights start He-normal
    for a leaky ReLU, those of the dense blocks a tenth of that (Sec. 3.1, arXiv 1809.00219); biases 0.

    Args:
        inputs: channels of the image.
        out: channels of the feature map.
        blocks: N; 12 for MoNuSeg, 15 for Cityscapes, 6 for Vaihingen.
        width: channels inside.
        growth: channels that each convolution of a dense block adds.
    """

    def __init__(self, inputs: int, out: int, blocks: Natural, width: Count = 64, growth: Count = 32):
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.trunk = nn.Conv2d(width, width, 3, padding=1)
        self.late = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, out, 3, padding=1)
        self.initialise()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        x = self.first(image)
        x = x + self.trunk(self.blocks(x))
        return self.last(F.leaky_relu(self.late(x), SLOPE))

    @torch.no_grad()
    def initialise(self) -> None:
        """The start that the class promises."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for conv in self.blocks.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight.mul_(SMALL)

"""Residual-in-residual dense network of ESRGAN (Sec. 3.1, arXiv 1809.00219), SegDiff's image encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldae.core.types import Count, Natural

SLOPE = 0.2  # of the leaky ReLU below 0
RESIDUAL_SCALE = 0.2  # factor of a residual branch
INIT_SCALE = 0.1  # factor of the initial weights of dense blocks


class DenseBlock(nn.Module):
    """Five conv3, each on the concatenation of the input and all outputs before; 0.2 times the last plus the input.

    Args:
        width: channels of input and output.
        growth: output channels of each of the first four convolutions.
    """

    def __init__(self, width: int, growth: int):
        super().__init__()
        outs = [growth] * 4 + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + k * growth, out, 3, padding=1) for k, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, C, H, W) -> (B, C, H, W)."""
        *convs, last = self.convs
        features = x
        for conv in convs:
            features = torch.cat([features, F.leaky_relu(conv(features), SLOPE)], dim=1)  # (B, C + k growth, H, W)
        return x + RESIDUAL_SCALE * last(features)


class RRDB(nn.Module):
    """Residual-in-residual dense block: 0.2 times the output of three dense blocks, plus the input."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, C, H, W) -> (B, C, H, W)."""
        return x + RESIDUAL_SCALE * self.dense(x)


class RRDBNet(nn.Module):
    """G(I) of SegDiff: image encoder to a feature map of the same size (Sec. 3, arXiv 2112.00390).

    conv3, N blocks and a conv3 with a skip connection around them, conv3 and leaky ReLU, conv3. The initialisation is
    He-normal for a leaky ReLU, a tenth of that in dense blocks (Sec. 3.1, arXiv 1809.00219); biases are 0.

    Args:
        inputs: channels of the image.
        out: channels of the feature map.
        blocks: N; 12 for MoNuSeg, 15 for Cityscapes, 6 for Vaihingen.
        width: channels of the blocks.
        growth: output channels of each convolution of a dense block.
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
        """Return the feature map of an image, (B, C, H, W) -> (B, out, H, W)."""
        x = self.first(image)
        x = x + self.trunk(self.blocks(x))
        return self.last(F.leaky_relu(self.late(x), SLOPE))

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise all weights as the class docstring specifies."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for conv in self.blocks.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight.mul_(INIT_SCALE)

"""Discriminator of a patch GAN (arXiv 1611.07004), as in VQGAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldae.core.types import Count, Natural, NonNegative


class Discriminator(nn.Module):
    """Base class of discriminators, with the weight and the schedule of the adversarial loss.

    Args:
        factor: weight of the generator's adversarial loss, multiplied by the adaptive weight.
        start: training step from which the discriminator is updated.
        head_start: number of steps from `start` in which the generator has no adversarial loss. An untrained
            discriminator has small gradients, which the adaptive weight scales up, and reconstructions suffer.
    """

    def __init__(self, factor: float, start: int, head_start: int):
        super().__init__()
        self.factor, self.start, self.head_start = factor, start, head_start

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, high for real images, (B, 3, H, W) in [-1, 1] -> (B, 1, h, w)."""
        raise NotImplementedError


class PatchGAN(Discriminator):
    """Convolutions of stride 2, then two of stride 1; the receptive field of a logit is a patch.

    Published size: channels 64, strides 3, with a receptive field of 70 x 70 pixels and 2,765,633 parameters.

    Args: as Discriminator, and
        channels: channels of the first convolution; they double with each, up to eightfold.
        strides: number of convolutions of stride 2.
    """

    def __init__(
        self,
        channels: Count = 64,
        strides: Count = 3,
        factor: NonNegative = 0.5,
        start: Natural = 0,
        head_start: Natural = 0,
    ):
        super().__init__(factor, start, head_start)
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, strides + 1):
            out = channels * min(2**i, 8)
            stride = 2 if i < strides else 1
            layers += [
                nn.Conv2d(width, out, 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            width = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of patches, (B, 3, H, W) -> (B, 1, h, w); positive for real images."""
        return self.layers(x)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Initialise the weights of convolutions from N(0, 0.02^2), and the scales of BatchNorm from N(1, 0.02^2)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)

"""Small U-Nets of every variant, for the tests of their blocks and conditions."""

from __future__ import annotations

import torch

from ldae.core.types import Cond, NoiseLevel
from ldae.denoisers.unet import UNet
from ldae.diffusion.schedules import DDPMLinear
from ldae.nn.rrdb import RRDBNet

SR3 = {"level": "gamma", "sinusoid": "improved", "scale_shift": True, "resample": "block", "rescale": True}
VARIANTS = {
    "ddpm": {},
    "improved": {"level": "scaled", "sinusoid": "improved", "scale_shift": True, "heads": 4, "dropout": 0.3},
    "sr3": {**SR3, "cond_channels": 3},
    "segdiff": {"sinusoid": "improved", "encoder": {"blocks": 1, "width": 8, "growth": 4}, "cond_channels": 3},
    "classes": {"classes": 5},
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def level(*t, gamma=0.6, sigma=0.8):
    return NoiseLevel(torch.tensor(t), torch.full((len(t),), gamma), torch.full((len(t),), sigma))


def network(side=8, **settings):
    torch.manual_seed(0)
    arguments = {"in_shape": (3, side, side), "out_shape": (3, side, side), "schedule": DDPMLinear()}
    sizes = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    arguments |= sizes | settings
    if encoder := arguments.pop("encoder", None):
        arguments["encoder"] = RRDBNet(3, arguments["channels"], **encoder)
    return UNet(**arguments).eval()


def randomised(net, by=0.1):
    """As after some training: no parameter is at its start."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(by * normal(i, *p.shape))
    return net


def conditions_of(count, seed=7, side=4):
    return Cond(label=torch.arange(count) % 5, image=normal(seed, count, 3, side, side).clamp(-1, 1))


def trained(name):
    """A network of one variant without zero-initialised weights, for 8 x 8 pixels, and the conditions of two images."""
    return randomised(network(**VARIANTS[name])), conditions_of(2, side=8)

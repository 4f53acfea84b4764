"""l-DAE: pretrain vision encoders by denoising, and measure their features (arXiv 2401.14404).

Pretrain, open a run, use its encoder:

    >>> import ldae
    >>> run = ldae.pretrain("ldae/digits", out="runs/digits")
    >>> encoder = run.encoder()                  # or ldae.load_encoder("runs/digits")
    >>> features = encoder(images)               # (B, 3, H, W) in [0, 1] -> (B, D)

Sample from a trained diffusion model, restore or edit images:

    >>> generator = ldae.load_generator("runs/ddpm")
    >>> images = generator.sample(64, sampler="ddim", steps=50)  # (64, H, W, 3) uint8

Score features, by `linear_probe.score`. Build parts by their constructors:

    >>> tokenizer = ldae.PatchPCA((3, 32, 32), patch=4, d=16)
    >>> schedule = ldae.LinearSigma(T=1000)

Every command of the command line (`ldae --help`) takes the same keys.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ldae.core.version import __version__

# name -> module; imported when it is first used, so that `import ldae` stays quick
_MODULES = {
    "Encoder": "ldae.export.encoder",
    "Run": "ldae.app.api",
    "ImageGenerator": "ldae.app.sampling.image_generator",
    "load_encoder": "ldae.app.api",
    "load_generator": "ldae.app.api",
    "pretrain": "ldae.app.api",
    "push_to_hub": "ldae.app.api",
    "PatchPCA": "ldae.tokenizers.patch_linear",
    "PatchAE": "ldae.tokenizers.patch_linear",
    "PatchVAE": "ldae.tokenizers.patch_linear",
    "Pixel": "ldae.tokenizers.pixel",
    "ConvVAE": "ldae.tokenizers.conv_vae",
    "VQ": "ldae.tokenizers.vq",
    "Cosine": "ldae.diffusion.schedules",
    "DDPMLinear": "ldae.diffusion.schedules",
    "LinearGamma2": "ldae.diffusion.schedules",
    "LinearSigma": "ldae.diffusion.schedules",
}
__all__ = [
    "VQ",
    "ConvVAE",
    "Cosine",
    "DDPMLinear",
    "Encoder",
    "ImageGenerator",
    "LinearGamma2",
    "LinearSigma",
    "PatchAE",
    "PatchPCA",
    "PatchVAE",
    "Pixel",
    "Run",
    "__version__",
    "load_encoder",
    "load_generator",
    "pretrain",
    "push_to_hub",
]

if TYPE_CHECKING:
    from ldae.app.api import Run, load_encoder, load_generator, pretrain, push_to_hub
    from ldae.app.sampling.image_generator import ImageGenerator
    from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearGamma2, LinearSigma
    from ldae.export.encoder import Encoder
    from ldae.tokenizers.conv_vae import ConvVAE
    from ldae.tokenizers.patch_linear import PatchAE, PatchPCA, PatchVAE
    from ldae.tokenizers.pixel import Pixel
    from ldae.tokenizers.vq import VQ


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ldae' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])

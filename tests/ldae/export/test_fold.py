"""Objectives that fold into a plain ViT, and those that do not."""

from __future__ import annotations

import pytest
import torch
from unets import randomised

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.export.encoder import Encoder
from ldae.export.fold import fold, plain_vit

SIZES = ("denoiser.width=64", "denoiser.heads=2", "denoiser.encoder_depth=2", "denoiser.decoder_depth=2")
DIT_S = ("denoiser=dit_s", *SIZES)
LDAE = ("experiment=deconstruct/12_ldae", "data=cifar10")


def system_of(config, images, *argv):
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *argv))
    if not bool(parts.tokenizer.fitted):
        parts.tokenizer.fit([2 * images - 1])
    randomised(parts.denoiser, by=0.05)
    return parts


@pytest.fixture(scope="module")
def images():
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "argv",
    [
        (*LDAE, "denoiser=vit_64x4", "tokenizer=pixel", "data.patch=4"),
        (
            "experiment=deconstruct/08_clean_latent",
            "data=cifar10",
            "tokenizer=identity",
            "denoiser=dit_s",
            "denoiser.patch=4",
            *SIZES,
        ),
        (
            *LDAE,
            "denoiser=dit_s",
            "denoiser.patch=8",
            *SIZES,
            "data.d=16",
            "tokenizer.scaling=one",
        ),  # four patches of 4 in a token
    ],
    ids=["pixel", "identity", "larger"],
)
@torch.no_grad()
def test_what_is_linear_on_the_patches_of_the_vit_folds(config, images, argv):
    encoder = Encoder(system_of(config, images, *argv).objective, t=10)
    assert (plain_vit(encoder)(2 * images - 1) - encoder(images)).abs().max() < 1e-4


def test_a_tokenizer_that_mixes_patches_of_the_vit_is_refused(config, images):
    argv = (*LDAE, "denoiser=dit_s", *SIZES, "data.d=16", "tokenizer.scaling=one")
    encoder = Encoder(system_of(config, images, *argv).objective, t=10)
    with pytest.raises(ConfigError, match="cannot be folded: the tokenizer's patches are larger"):
        fold(encoder)


def test_what_is_no_vit_is_refused(config, images):
    small = ("denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[16]")
    encoder = Encoder(system_of(config, images, "experiment=ddpm/cifar10_cpu", *small).objective)
    with pytest.raises(ConfigError, match="denoiser='UNet' cannot be folded: it must be a ViT on clean input"):
        fold(encoder)

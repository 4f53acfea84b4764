"""Parts of a config: impossible ones are refused by a sentence that names the key."""

from __future__ import annotations

import pytest

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.tasks.images import Images

PIXELS = ("data=cifar10", "tokenizer=pixel", "tokenizer.patch=1", "input=latent", "output=latent", "target=eps")


class WithImage(Images):
    image_channels = 3


@pytest.mark.parametrize(
    ("task", "encoder", "sentence"),
    [
        (Images, {"blocks": 1}, "denoiser.encoder=.* has no image to read"),
        (WithImage, {"blocks": 1, "grwth": 4}, r"denoiser.encoder.grwth=4 is not a key.*growth"),
        (WithImage, {"blocks": -1}, "denoiser.encoder.blocks=-1 must be at least 0"),
        (WithImage, {"width": 8}, "denoiser.encoder.blocks=null is missing"),
    ],
)
def test_an_image_encoder_that_cannot_be_built_is_refused(config, task, encoder, sentence):
    settings = config("pretrain", *PIXELS, "schedule=ddpm_linear", "weight=one", "loss=l2", "denoiser=unet_segdiff_64")
    settings["denoiser"]["encoder"] = encoder
    parts = Parts(settings)
    parts.task = task()
    with pytest.raises(ConfigError, match=sentence):
        _ = parts.denoiser


@pytest.mark.parametrize("channels", [-3, 0, "many"])
def test_a_wrong_number_of_channels_is_named_before_the_image_encoder_is_built(config, channels):
    settings = config("pretrain", *PIXELS, "schedule=ddpm_linear", "weight=one", "loss=l2", "denoiser=unet_segdiff_64")
    settings["denoiser"]["channels"] = channels
    parts = Parts(settings)
    parts.task = WithImage()
    with pytest.raises(ConfigError, match=r"denoiser\.channels="):
        _ = parts.denoiser

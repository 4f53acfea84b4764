"""A finished run as an encoder: its mode, and the images that it takes."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.export.encoder import Encoder


@pytest.fixture(params=["experiment=ldae/digits", "experiment=mae/cifar10_cpu"])
def encoder(request, config):
    torch.manual_seed(0)
    parts = Parts(config("pretrain", request.param, "data=digits"))
    if parts.objective.tokenizer is not None:
        parts.tokenizer.fit([torch.rand(32, 3, 8, 8) * 2 - 1])
    return Encoder(parts.objective)


def test_an_encoder_is_in_eval_mode_and_names_the_images_that_it_takes(encoder):
    assert not any(module.training for module in encoder.modules())
    assert encoder.image_shape == (3, 8, 8)
    assert "images=(B, 3, 8, 8) in [0, 1]" in repr(encoder)
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(encoder(images), encoder(images.double()))
    assert encoder(images[:0]).shape[0] == 0


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.rand(2, 3, 16, 16), r"shape \(2, 3, 16, 16\)' must have shape \(B, 3, 8, 8\): .* 8 x 8 pixels"),
        (torch.rand(2, 1, 8, 8), "3 channels"),
        (torch.rand(3, 8, 8), r"must have shape \(B, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"images='torch.uint8' must be floating point in \[0, 1\]"),
        (torch.rand(2, 3, 8, 8) * 255, r"must be in \[0, 1\]"),
        (torch.rand(2, 3, 8, 8) * 2 - 1, r"must be in \[0, 1\]"),
        (torch.full((2, 3, 8, 8), torch.nan), r"must be in \[0, 1\]"),
    ],
)
def test_other_images_are_refused_in_one_sentence(encoder, images, sentence):
    with pytest.raises(ConfigError, match=sentence):
        encoder(images)

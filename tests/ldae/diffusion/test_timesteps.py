"""Levels of a batch: the fraction of images without noise."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.schedules import LinearGamma2
from ldae.diffusion.timesteps import Uniform


def test_that_fraction_of_the_images_gets_no_noise_and_the_others_their_levels():
    schedule = LinearGamma2()
    plain, _ = Uniform().draw(schedule, 4096, BatchGenerator([0]))
    level, _ = Uniform(clean=0.25).draw(schedule, 4096, BatchGenerator([0]))
    clean = level.sigma == 0
    assert clean.float().mean() == pytest.approx(0.25, abs=0.02)
    assert (level.t[clean] == 0).all()
    assert (level.gamma[clean] == 1).all()
    for name in ("t", "gamma", "sigma"):
        assert torch.equal(getattr(level, name)[~clean], getattr(plain, name)[~clean])


@pytest.mark.parametrize(("argv", "message"), [(("target=eps",), "use target=x0"), (("weight=snr",), "infinite")])
def test_images_without_noise_need_a_target_and_a_weight_that_are_defined_there(config, argv, message):
    base = ("experiment=deconstruct/08_clean_latent", "data=digits", "denoiser=vit_64x4", "timesteps.clean=0.5")
    with pytest.raises(ConfigError, match=message):
        _ = Parts(config("pretrain", *base, *argv)).objective

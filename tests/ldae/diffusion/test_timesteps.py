"""Levels of a batch: the fraction of images without noise."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator
from ldae.diffusion.schedules import LinearGamma2
from ldae.diffusion.timesteps import LossAware, Uniform


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


def test_the_history_of_losses_is_that_of_recording_one_after_another():
    schedule, size = LinearGamma2(T=5), 3
    timesteps = LossAware(schedule, history=size)
    expected = [[] for _ in range(schedule.T)]
    for k in range(6):
        t, losses = torch.randint(4, (7,)), torch.rand(7)  # t = 4 is never drawn
        timesteps.record(t, losses)
        for step, loss in zip(t.tolist(), losses.double().tolist(), strict=True):
            expected[step] = [*expected[step], loss][-size:]
        assert timesteps.counts.tolist() == list(map(len, expected)), k
        for kept, row in zip(timesteps.losses.tolist(), expected, strict=True):
            assert kept == row + [0.0] * (size - len(row)), k
    assert torch.equal(timesteps.probabilities(), torch.full((5,), 0.2, dtype=torch.float64))
    timesteps.record(torch.full((3,), 4), torch.ones(3))
    assert timesteps.probabilities()[4] > 0.2

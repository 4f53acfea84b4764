"""A second output for pixels, and noise levels of each token: formulas, checks, unchanged defaults."""

from __future__ import annotations

import inspect

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, NoiseLevel
from ldae.diffusion.corruptions.base import HasSpectrum, Mixed
from ldae.diffusion.schedules import LinearGamma2
from ldae.diffusion.timesteps import PerToken
from ldae.nn.patchify import normalised, patchify, unpatchify
from ldae.objectives.denoise import Denoise
from ldae.tokenizers.base import HasBasis

RECIPE = ("experiment=deconstruct/07_patch_pca", "data=cifar10", "denoiser=vit_64x4", "data.d=16")
BOTH = ("objective=with_pixels", "timesteps=per_token", "denoiser.noise_conditioning=false")


@pytest.fixture
def batch():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.zeros(6, dtype=torch.long), torch.arange(6))


def system_of(config, batch, *argv):
    """Return an objective whose tokenizer is fitted and whose network is not zero-initialised."""
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *RECIPE, *argv))
    parts.tokenizer.fit([2 * batch.images - 1])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parts.denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return parts.objective


def test_the_loss_is_the_formula_written_out(config, batch):
    objective = system_of(config, batch, *BOTH, "objective.pixel_weight=0.7")
    loss, metrics = objective(batch, BatchGenerator([3]))

    rng = BatchGenerator([3])
    t = (rng.uniform((6, 1, 8, 8)) * 1000).long()
    gamma, sigma = (1 - (t + 1) / 1000).sqrt(), ((t + 1) / 1000).sqrt()
    x0 = 2 * batch.images - 1
    z0 = objective.tokenizer.encode(x0)
    eps = rng.normal(z0.shape)
    out = objective.denoiser(gamma * z0 + sigma * eps, NoiseLevel(t, gamma, sigma))
    patches = x0.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 4, 5, 1, 2, 3).reshape(6, 48, 8, 8)
    pixels = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
    expected = ((out[:, :16] - eps) ** 2).mean() + 0.7 * ((out[:, 16:] - pixels) ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    total, count = metrics["pixels"]
    assert (total / count).item() == pytest.approx(((out[:, 16:] - pixels) ** 2).mean().item(), rel=1e-4)


def test_levels_are_described_image_by_image(config, batch):
    described = system_of(config, batch, *BOTH).describe(batch, BatchGenerator([3]))
    t = (BatchGenerator([3]).uniform((6, 64)) * 1000).long()
    assert described["t"] == pytest.approx(t.float().mean(1).tolist())
    assert all(isinstance(t, int) for t in system_of(config, batch).describe(batch, BatchGenerator([3]))["t"])


def test_with_weight_0_it_is_the_loss_of_the_first_output(config, batch):
    objective = system_of(config, batch, "objective=with_pixels", "objective.pixel_weight=0")
    loss, _ = objective(batch, BatchGenerator([3]))
    rng = BatchGenerator([3])
    level, _ = objective.timesteps.draw(objective.schedule, 6, rng)
    z0 = objective.tokenizer.encode(2 * batch.images - 1)
    state = objective.corruption.draw(z0, rng)
    out = objective.denoiser(objective.corruption.corrupt(z0, level, state), level)
    assert isinstance(state, Mixed)
    assert loss.item() == pytest.approx(((out[:, :16] - state.eps) ** 2).mean().item(), rel=1e-5)
    assert objective.predict(z0, level).x0.shape == z0.shape


def test_levels_of_tokens_are_uniform_and_independent():
    schedule = LinearGamma2()
    level, importance = PerToken((8, 8), (16, 8)).draw(schedule, 256, BatchGenerator([0]))
    assert importance is None
    assert level.t.shape == level.gamma.shape == (256, 1, 16, 8)
    assert torch.equal(level.t[:, :, ::2], level.t[:, :, 1::2])  # the latents of a token share its level
    t = level.t[:, 0, ::2].reshape(256, 64).float()
    assert t.mean() == pytest.approx(499.5, abs=10)
    assert t.std() == pytest.approx(288.7, abs=6)
    within = torch.corrcoef(t.T) - torch.eye(64)
    assert within.abs().max() < 0.35  # 2016 pairs of 256 images: 5.6 standard errors
    assert within.mean().abs() < 0.01
    assert torch.allclose(level.gamma**2 + level.sigma**2, torch.ones_like(level.gamma))


def test_a_network_that_is_not_told_the_level_answers_alike_at_all_levels(config, batch):
    objective = system_of(config, batch, "denoiser.noise_conditioning=false")
    z = objective.tokenizer.encode(2 * batch.images - 1)
    outs = [objective.denoiser(z, objective.schedule.at(torch.full((6,), t))) for t in (0, 500)]
    assert torch.equal(*outs)
    assert not any("level" in name for name, _ in objective.denoiser.named_parameters())
    conditioned = system_of(config, batch)
    outs = [conditioned.denoiser(z, conditioned.schedule.at(torch.full((6,), t))) for t in (0, 500)]
    assert not torch.allclose(*outs)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("timesteps=per_token",), "noise_conditioning=true tells the network one level, and the tokens have many"),
        ((*BOTH, "weight=snr"), "weights images, and the levels are those of tokens; use weight=one"),
        ((*BOTH, "corruption=component_mask", "target=x0"), "adds none; use target=x0"),
        (
            ("objective=with_pixels", "target=x0", "output=image"),
            "pixels beside the latent; use output=latent",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_one_sentence(config, argv, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _ = Parts(config("pretrain", *RECIPE, *argv)).objective


def test_a_patch_is_standardised_and_a_constant_one_is_0():
    x = torch.rand(2, 3, 8, 8)
    x[1, :, :4, :4] = 0.3
    patches = normalised(patchify(x, 4), dim=1)
    assert torch.allclose(patches.mean(1), torch.zeros(2, 2, 2), atol=1e-5)
    assert torch.allclose(patches.std(1)[0], torch.ones(2, 2), atol=1e-3)
    assert unpatchify(patches, 4)[1, :, :4, :4].abs().max() < 1e-3


@pytest.mark.parametrize("tokenizer", ["patch_pca", "pixel"])
def test_what_a_tokenizer_offers_is_found_without_its_buffers(config, tokenizer):
    """From Python 3.12 on isinstance resolves members of a protocol statically, which misses a module's buffers."""
    part = Parts(config("pretrain", *RECIPE, f"tokenizer={tokenizer}")).tokenizer
    for protocol in (HasBasis, HasSpectrum):
        members = [name for name in vars(protocol) if not name.startswith("_")]
        members += [name for name in protocol.__annotations__ if name not in members]
        assert members
        for name in members:
            assert callable(inspect.getattr_static(part, name))
        assert isinstance(part, protocol)


def test_the_other_objectives_have_as_many_channels_as_before(config):
    parts = Parts(config("pretrain", *RECIPE))
    assert type(parts.objective) is Denoise
    assert Denoise.output_channels(parts.output) == 16

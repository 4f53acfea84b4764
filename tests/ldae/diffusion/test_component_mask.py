"""Masked components and coloured noise: the choice and number of components, and the support of the loss."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator
from ldae.diffusion.corruptions.component_mask import ComponentMask
from ldae.diffusion.corruptions.gaussian import Gaussian, GaussianSpectrum
from ldae.diffusion.schedules import LinearGamma2, LinearSigma
from ldae.nn.patchify import patchify
from ldae.sampling.generate import Generator, SamplerConfig
from ldae.tokenizers.patch_linear import PatchAE, PatchPCA

LEVEL = LinearSigma().at(torch.full((64,), 500))


def images(count=64, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.avg_pool2d(torch.randn(count, 3, side, side, generator=generator), 3, 1, 1).clamp(-1, 1)


def pca(d=12, scaling="one"):
    return PatchPCA((3, 8, 8), 4, d, scaling).fit([images()])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("per", ["image", "patch"])
def test_by_count_that_fraction_of_the_components_is_masked_each_as_often(ratio, per):
    corruption = ComponentMask(pca(10), ratio, by="count", per=per)
    z0 = torch.randn(512, 10, 2, 2)
    mask = corruption.draw(z0, BatchGenerator([0])).mask
    assert (mask.sum(1) == round(10 * ratio)).all()
    assert mask.float().mean((0, 2, 3)).sub(ratio).abs().max() < 0.1
    assert mask.shape == (512, 10, *((2, 2) if per == "patch" else (1, 1)))
    if per == "patch":
        assert (mask[:, :, 0, 0] != mask[:, :, 1, 1]).any()


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_by_variance_masked_components_just_reach_the_ratio(scaling):
    tokenizer = pca(12, scaling)
    share = tokenizer.variances() / tokenizer.variances().sum()
    mask = ComponentMask(tokenizer, 0.4).draw(torch.randn(512, 12, 2, 2), BatchGenerator([1])).mask[:, :, 0, 0]
    hidden = (mask * share).sum(1)
    largest = (mask * share).amax(1)  # of an order whose last component may have been any of the masked ones
    assert (hidden > 0.4 - 1e-5).all()
    assert (hidden - largest < 0.4 + 1e-5).all()
    assert mask.any(1).all()
    assert (~mask).any(1).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_one_component_is_masked_and_one_visible_at_least(ratio):
    mask = ComponentMask(pca(12), ratio).draw(torch.randn(64, 12, 2, 2), BatchGenerator([1])).mask
    assert (mask.sum(1) == (1 if ratio == 0 else 11)).all()


def test_masked_components_are_zero_and_the_others_are_as_they_were_or_noised():
    z0 = torch.randn(64, 12, 2, 2)
    for noise in (False, True):
        corruption = ComponentMask(pca(12), 0.5, per="patch", noise=noise)
        state = corruption.draw(z0, BatchGenerator([3]))
        z_t = corruption.at(z0, LEVEL, state)
        assert (z_t[state.mask] == 0).all()
        expected = z0 if not noise else z0 + LEVEL.sigma.reshape(-1, 1, 1, 1) * state.eps
        assert torch.equal(z_t[~state.mask], expected[~state.mask])


@pytest.mark.parametrize("kind", [ComponentMask, GaussianSpectrum])
def test_the_state_of_a_slice_is_its_own_and_other_seeds_draw_others(kind):
    corruption, z0 = kind(pca(12)), torch.randn(8, 12, 2, 2)
    level = LinearSigma().at(torch.full((8,), 500))
    whole = corruption.at(z0, level, corruption.draw(z0, BatchGenerator([1, 2])))
    half = LinearSigma().at(torch.full((4,), 500))
    for k in (0, 1):
        part = z0[4 * k : 4 * k + 4]
        alone = corruption.at(part, half, corruption.draw(part, BatchGenerator([k + 1])))
        assert torch.equal(alone, whole[4 * k : 4 * k + 4])
    assert not torch.equal(corruption.at(z0, level, corruption.draw(z0, BatchGenerator([3, 4]))), whole)


def parts_of(config, *argv):
    parts = Parts(config("pretrain", "data=digits", "denoiser=vit_64x4", "target=x0", "weight=one", *argv))
    side = parts.data.size
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 3, side, side, generator=generator)
    parts.tokenizer.fit([2 * x - 1])
    with torch.no_grad():
        for p in parts.denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return parts, Batch(x, torch.zeros(32, dtype=torch.long), torch.arange(32))


@pytest.mark.parametrize("output", ["latent", "image"])
def test_the_loss_is_the_error_of_the_masked_components_alone(config, output):
    """Written out on the basis: of the masked components and, of an image, of the residual with weight `tail`."""
    loss = "pca_weighted" if output == "image" else "l2"
    argv = ("corruption=component_mask", "corruption.ratio=0.5", "corruption.by=count", f"output={output}")
    parts, batch = parts_of(config, *argv, f"loss={loss}", "input=latent", "tokenizer=patch_pca", "data.d=3")
    tokenizer = parts.tokenizer
    value, _ = parts.objective(batch, BatchGenerator([5]))
    rng = BatchGenerator([5])
    level = parts.schedule.at(rng.integers(parts.schedule.T, 32))
    x0 = 2 * batch.images - 1
    z0 = tokenizer.encode(x0)
    mask = parts.corruption.draw(z0, rng).mask.expand_as(z0)
    out = parts.denoiser(z0.masked_fill(mask, 0), level)
    if output == "latent":
        expected = ((out - z0) ** 2)[mask].reshape(32, -1).mean(1)
    else:
        D = tokenizer.basis.shape[0]
        residue = torch.einsum("kD,bDhw->bkhw", tokenizer.basis, patchify(x0 - out, tokenizer.patch)) ** 2
        where = torch.cat([mask, torch.ones(32, D - 3, *mask.shape[2:], dtype=torch.bool)], 1)
        weight = torch.where(torch.arange(D) < 3, 1.0, 0.1).reshape(-1, 1, 1)
        expected = (weight * residue)[where].reshape(32, -1).mean(1)
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("target=eps", "output=latent", "loss=l2"), "ComponentMask adds none"),
        (("output=image", "loss=l2"), "loss=pca_weighted"),
        (("tokenizer=patch_ae", "output=latent", "loss=l2"), "corruption.by=count"),
    ],
)
def test_what_does_not_go_together_is_refused(config, argv, message):
    base = ("corruption=component_mask", "data=digits", "denoiser=vit_64x4", "target=x0", "weight=one", "input=latent")
    with pytest.raises(ConfigError, match=message):
        _ = Parts(config("pretrain", *base, *argv)).objective


def test_runs_that_no_sampler_inverts_are_not_sampled(config):
    argv = ("corruption=component_mask", "output=latent", "loss=l2", "input=latent", "tokenizer=patch_pca", "data.d=3")
    parts, _ = parts_of(config, *argv)
    with pytest.raises(ConfigError, match="pretraining alone; sample a run with corruption=gaussian"):
        Generator(parts.objective, SamplerConfig(None, ()))


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0])
def test_noise_variances_are_powers_of_the_latent_variances_of_mean_one(power):
    tokenizer = pca(8)
    s2 = GaussianSpectrum(tokenizer, power).deviations().flatten().double() ** 2
    expected = tokenizer.variances() ** power
    torch.testing.assert_close(s2, expected / expected.mean(), rtol=1e-4, atol=0)
    eps = GaussianSpectrum(tokenizer, power).draw(torch.zeros(4096, 8, 2, 2), BatchGenerator([0])).eps
    torch.testing.assert_close(eps.double().var((0, 2, 3)), s2, rtol=0.05, atol=0)


def test_power_one_has_the_signal_to_noise_ratios_of_latents_of_unit_variance():
    """z_t on `one` with power 1 is a fixed linear map, by dimension, of z_t on `each` with white noise."""
    one, each, x = pca(8), pca(8, "each"), images()
    level = LinearGamma2().at(torch.full((64,), 300))
    coloured, white = GaussianSpectrum(one, 1.0), Gaussian()
    z, y = one.encode(x), each.encode(x)
    a = coloured.at(z, level, coloured.draw(z, BatchGenerator([2])))
    b = white.at(y, level, white.draw(y, BatchGenerator([2])))
    torch.testing.assert_close(a, b * (each.scale / one.scale), rtol=1e-4, atol=1e-5)


def test_a_spectrum_needs_eigenvalues():
    with pytest.raises(ConfigError, match="PatchAE has none"):
        GaussianSpectrum(PatchAE((3, 8, 8), 4, 4))

"""The objective: the formula of each step of the path, and the laws of its loss (arXiv 2401.14404)."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_sample_images

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator
from ldae.export.encoder import Encoder, hash_images
from ldae.export.fold import plain_vit
from ldae.nn.patchify import patchify
from ldae.objectives.losses import L2, PCAWeighted
from ldae.objectives.panels import DenoisingPanel, filter_tiles

SMALL = ("data=cifar10", "denoiser=vit_64x4", "data.d=16", "tokenizer.scaling=one")


@pytest.fixture(scope="module")
def images():
    picture = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1).float() / 255
    return torch.stack([picture[:, 13 * i : 13 * i + 32, 17 * i : 17 * i + 32] for i in range(24)])


def system_of(config, images, *argv):
    """Parts whose tokenizer is fitted and whose network is not zero-initialised."""
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *SMALL, *argv))
    tokenizer = parts.tokenizer
    tokenizer.fit([2 * images - 1])
    if tokenizer.needs_training:
        tokenizer.calibrate([2 * images - 1])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parts.denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return parts


def batch_of(images):
    return Batch(images, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)))


@pytest.mark.parametrize("number", ["05", "06", "07", "08", "09", "10", "11", "12"])
def test_the_loss_of_each_step_is_the_formula_written_out(config, images, number):
    """Each rung against its formula (arXiv 2401.14404), from the same draws, without the suite's objective."""
    name = next(n for n in RUNGS if n.startswith(number))
    parts = system_of(config, images, f"experiment=deconstruct/{name}")
    objective, tokenizer, network = parts.objective, parts.tokenizer, parts.denoiser
    loss, metrics = objective(batch_of(images), BatchGenerator([7]))

    rng = BatchGenerator([7])
    t = rng.integers(1000, 24)
    x0 = 2 * images - 1
    z0 = tokenizer.encode(x0)
    eps = rng.normal(z0.shape)
    if number < "09":
        gamma, sigma = (1 - (t + 1) / 1000).sqrt(), ((t + 1) / 1000).sqrt()
    else:
        gamma, sigma = torch.ones(24), t / 999 * 2**0.5
    level = parts.schedule.at(t)
    z_t = gamma.reshape(-1, 1, 1, 1) * z0 + sigma.reshape(-1, 1, 1, 1) * eps
    out = network(z_t if number < "10" else tokenizer.decode(z_t), level)
    if number < "08":
        per_image = ((out - eps) ** 2).mean((1, 2, 3))
    elif number < "11":
        per_image = ((out - z0) ** 2).mean((1, 2, 3))
    elif number == "11":
        per_image = ((out - tokenizer.decode(z0)) ** 2).mean((1, 2, 3))
    else:
        r = torch.einsum("kD,bDhw->bkhw", tokenizer.basis, patchify(x0 - out, 4))
        w = torch.where(torch.arange(48) < 16, 1.0, 0.1).reshape(-1, 1, 1)
        per_image = (w * r**2).mean((1, 2, 3))
    lam = torch.ones(24) if number < "08" else gamma**2 if number == "08" else 1 / (1 + sigma**2)
    assert loss.item() == pytest.approx((lam * per_image).mean().item(), rel=1e-4)
    total, count = metrics["loss_level"]
    assert count.sum() == 24
    assert (total.sum() / 24).item() == pytest.approx(loss.item(), rel=1e-5)


RUNGS = (
    "05_patch_vae",
    "06_patch_ae",
    "07_patch_pca",
    "08_clean_latent",
    "09_no_input_scaling",
    "10_image_input",
    "11_image_output",
    "12_ldae",
)


def test_the_last_steps_loss_with_equal_weights_is_the_pixel_error(config, images):
    parts = system_of(config, images)
    a, b = images, images.flip(0)
    metric = PCAWeighted(parts.tokenizer, parts.output, tail=1.0)
    assert torch.allclose(metric(a, b), L2()(a, b), rtol=1e-4)


def test_what_the_tokenizer_lost_counts_a_tenth(config, images):
    parts = system_of(config, images)
    tokenizer, x0 = parts.tokenizer, 2 * images - 1
    lost = x0 - tokenizer.decode(tokenizer.encode(x0))  # lies beyond the first d dimensions
    metric = PCAWeighted(tokenizer, parts.output, tail=0.1)
    assert torch.allclose(metric(lost, torch.zeros_like(lost)), 0.1 * (lost**2).mean((1, 2, 3)), rtol=1e-3)


def test_whitened_weights_are_inverse_variances_of_mean_one(config, images):
    parts = system_of(config, images)
    w = PCAWeighted(parts.tokenizer, parts.output, tail=1.0, whiten=1.0).weights().flatten()
    eigenvalues = parts.tokenizer.eigenvalues.float()
    assert w[:16].mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.allclose(w[:16] / w[0], eigenvalues[0] / eigenvalues[:16], rtol=1e-4)
    assert torch.allclose(w[16:], w[15].expand(32))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("target=eps",), "target='Eps' is built from the noise"),
        (("weight=snr",), "weight='SNR' is infinite at a level of LinearSigma"),
        (("tokenizer=patch_ae",), "needs a tokenizer with an orthonormal basis"),
        (("output=latent",), "needs an image as output"),
    ],
)
def test_impossible_combinations_are_refused(config, argv, message):
    with pytest.raises(ConfigError, match=message):
        _ = Parts(config("pretrain", *SMALL, *argv)).objective


def test_the_tokenizer_is_frozen_and_the_network_learns(config, images):
    parts = system_of(config, images)
    objective = parts.objective
    objective(batch_of(images), BatchGenerator([0]))[0].backward()
    assert all(p.grad is None for p in objective.tokenizer.parameters())
    assert all(p.grad is not None for p in objective.denoiser.parameters())


def test_noise_is_in_the_latent_alone(config, images):
    """The noisy image less the clean projection has nothing outside the first d directions."""
    parts = system_of(config, images)
    objective, tokenizer = parts.objective, parts.tokenizer
    level = parts.schedule.at(torch.full((24,), 700))
    clean = objective.encoder_input(images, level, None)[0]
    noised = objective.encoder_input(images, level, BatchGenerator([0]))[0]
    beyond = tokenizer.rotate(noised - clean)
    assert beyond[:, :16].std() > 0.1
    assert beyond[:, 16:].abs().max() < 1e-4


def test_an_untouched_answer_denoises_to_the_truth_for_every_target(config, images):
    """With the network replaced by the truth itself, `denoised` returns the projected image."""
    for argv in (("experiment=deconstruct/07_patch_pca",), ("experiment=deconstruct/08_clean_latent",)):
        parts = system_of(config, images, *argv)
        objective, tokenizer = parts.objective, parts.tokenizer
        level = parts.schedule.at(torch.full((24,), 300))
        z0 = tokenizer.encode(2 * images - 1)
        state = objective.corruption.draw(z0, BatchGenerator([5]))
        answer = objective.target.of(z0, state, level)
        objective.denoiser.forward = lambda *_, answer=answer: answer
        noised, denoised = objective.denoise(batch_of(images), level, BatchGenerator([5]))
        assert torch.allclose(denoised, tokenizer.decode(z0), atol=1e-3)
        assert (noised - denoised).abs().mean() > 0.05


@pytest.mark.parametrize(
    "argv",
    [
        ("experiment=deconstruct/12_ldae",),
        ("experiment=deconstruct/12_ldae", "tokenizer.scaling=each", "data.d=8"),
        ("experiment=deconstruct/06_patch_ae",),
        ("experiment=deconstruct/09_no_input_scaling",),
    ],
)
@pytest.mark.parametrize("layer", [1, 2, 4])
def test_the_folded_encoder_is_a_plain_vit_of_timm_with_the_same_features(config, images, argv, layer):
    encoder = Encoder(system_of(config, images, *argv).objective, layer=layer, t=10)
    plain = plain_vit(encoder)
    with torch.no_grad():
        difference = (plain(2 * images - 1) - encoder(images)).abs().max()
    assert difference < 1e-4
    assert not any("ada" in name for name in plain.state_dict())


def test_folding_refuses_what_is_not_linear(config, images):
    encoder = Encoder(system_of(config, images).objective, noised=True)
    with pytest.raises(ConfigError, match="clean input"):
        plain_vit(encoder)


def test_encoder_refuses_layers_and_steps_that_are_not_there(config, images):
    objective = system_of(config, images).objective
    with pytest.raises(ConfigError, match="layer=9"):
        Encoder(objective, layer=9)
    with pytest.raises(ConfigError, match="t=1000"):
        Encoder(objective, t=1000)


def test_noised_features_differ_and_are_repeatable(config, images):
    objective = system_of(config, images).objective
    clean, noised = Encoder(objective, t=200)(images), Encoder(objective, t=200, noised=True)(images)
    assert not torch.allclose(clean, noised, atol=1e-3)
    assert torch.equal(noised, Encoder(objective, t=200, noised=True)(images))


@pytest.mark.parametrize("numbered", [True, False])
def test_noised_features_do_not_depend_on_the_batch_or_on_the_place_in_it(config, images, numbered):
    encoder = Encoder(system_of(config, images).objective, t=800, noised=True)
    index = torch.arange(100, 124)

    def features(rows):
        return encoder(images[rows], index[rows] if numbered else None)

    whole, order = features(torch.arange(24)), torch.arange(24).flip(0)
    assert torch.allclose(features(order)[order], whole, atol=1e-5)
    for rows in (order[:7], order[3:4]):
        assert torch.allclose(features(rows), whole[rows], atol=1e-5)


def test_the_noise_of_an_encoders_input_is_normal_and_another_one_for_every_image_level_and_seed(config, images):
    objective = system_of(config, images).objective
    level = objective.schedule.at(torch.full((200,), 800))
    same = images[:1].expand(200, -1, -1, -1)

    def noise(seed=0, t=800, first=0):
        encoder = Encoder(objective, t=t, noised=True, seed=seed)
        rng = encoder._rng(same, torch.arange(first, first + 200))
        return (
            (objective.tokenizer.encode(objective.encoder_input(same, level, rng)[0]) - z0) / level.sigma[0]
        ).flatten(1)

    z0 = objective.tokenizer.encode(2 * same - 1)
    eps = noise()  # (200, 16 * 64)
    assert abs(eps.mean()) < 0.01
    assert eps.std() == pytest.approx(1, abs=0.01)
    others = torch.cat([eps, noise(seed=1), noise(t=799), noise(first=200)])
    correlations = torch.corrcoef(others).triu(1)
    assert correlations.abs().max() < 7 / 1024**0.5  # of 319,600 pairs; 1 where noise is shared


def test_images_without_numbers_share_noise_only_if_they_are_equal(images):
    numbers = hash_images(images)
    assert len(set(numbers)) == 24
    assert hash_images(images.flip(0)) == numbers[::-1]
    assert hash_images(images + 1e-4) == numbers


def test_the_panel_measures_noise_and_shows_it(config, images):
    parts = system_of(config, images)
    scalars, pictures = DenoisingPanel(parts.objective, batch_of(images), every=1, shown=3)(0)
    noised = [scalars[f"psnr_noised/{k}_8"] for k in (1, 3, 5, 7)]
    assert noised == sorted(noised, reverse=True)  # more noise, less PSNR
    picture = pictures["clean_noised_denoised"]
    heads = picture.shape[1] - (3 * 66 - 2)  # above the columns
    assert 15 <= heads <= 41
    assert (picture[:, :heads] < 0.5).any()
    assert picture.shape[2] == 9 * 66 - 2
    assert torch.allclose(picture[:, heads : heads + 64 : 2, :64:2], images[0], atol=1e-6)  # the clean image
    assert filter_tiles(parts.tokenizer).shape == (3, 2 * 66 - 2, 8 * 66 - 2)

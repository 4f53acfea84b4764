"""Tokenizers: the laws of PCA, the inverse of each, their latent scale, their files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA

from ldae.core.errors import CheckpointError, ConfigError, NotFittedError
from ldae.core.types import BatchGenerator
from ldae.nn.patchify import patchify, unpatchify
from ldae.tokenizers.base import load_tokenizer, save_tokenizer, varies
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.patch_linear import PatchAE, PatchPCA, PatchVAE
from ldae.tokenizers.pixel import Identity, Pixel
from ldae.tokenizers.vq import VQ

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def images():
    """400 crops of two photographs, (400, 3, 32, 32) in [-1, 1]."""
    generator = np.random.default_rng(0)
    crops = []
    for picture in load_sample_images().images:
        for _ in range(200):
            y, x = generator.integers(0, 427 - 32), generator.integers(0, 640 - 32)
            crops.append(picture[y : y + 32, x : x + 32])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def fitted(images, d=16, patch=4, scaling="one", kind=PatchPCA):
    tokenizer = kind(SHAPE, patch, d, scaling)
    tokenizer.fit(images.split(64))
    return tokenizer


def flat(images):
    """Pictures whose patches have rank 16, 3 and 0: grey, one flat colour each, all one colour."""
    grey, colours = images[:, :1].expand(-1, 3, -1, -1), images[:, :, :1, :1].expand_as(images)
    return {"grey": grey, "colours": colours, "one": colours[:1].expand_as(images)}


@pytest.mark.parametrize(("kind", "rank"), [("grey", 16), ("colours", 3), ("one", 0)])
@pytest.mark.parametrize("scaling", ["one", "each"])
def test_dimensions_in_which_no_patch_varies_leave_latents_finite(images, kind, rank, scaling):
    x = flat(images)[kind]
    tokenizer = fitted(x, 32, scaling=scaling)
    assert varies(tokenizer.eigenvalues).sum() == rank
    z = tokenizer.encode(x)
    assert z.isfinite().all()
    assert z[:, rank:].abs().max() < 1e-4
    assert (tokenizer.decode(z) - x).abs().max() < 1e-4
    assert tokenizer.encode(images).abs().max() < 100  # pictures of another kind keep the scale of pixels
    if scaling == "each" and rank:
        assert (z[:, :rank].var((0, 2, 3)) - 1).abs().max() < 0.02


def test_patchify_names_rows_columns_channels_and_is_undone():
    x = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).float()
    patches = patchify(x, 4)
    assert patches.shape == (2, 48, 2, 2)
    assert torch.equal(patches[1, :, 1, 0].reshape(4, 4, 3), x[1, :, 4:8, 0:4].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), x)


def test_pca_basis_is_orthonormal(images):
    basis = fitted(images).basis
    assert (basis @ basis.T - torch.eye(48)).abs().max() < 1e-5


def test_pca_agrees_with_scikit_learn(images):
    tokenizer = fitted(images)
    rows = patchify(images, 4).movedim(1, -1).reshape(-1, 48).double().numpy()
    reference = PCA(svd_solver="full").fit(rows)
    share = tokenizer.eigenvalues / tokenizer.eigenvalues.sum()
    assert np.abs(share.numpy() - reference.explained_variance_ratio_).max() < 1e-4
    cosine = np.abs((reference.components_[:8] * tokenizer.basis[:8].numpy()).sum(1))
    assert cosine.min() > 1 - 1e-4


def test_pca_fits_the_same_whatever_the_size_of_the_batches(images):
    a, b = PatchPCA(SHAPE, 4, 16), PatchPCA(SHAPE, 4, 16)
    a.fit(images.split(400))
    b.fit(images.split(7))
    assert torch.allclose(a.eigenvalues, b.eigenvalues, rtol=1e-9, atol=1e-12)


def test_pca_with_all_dimensions_loses_nothing(images):
    tokenizer = fitted(images, d=48)
    assert (tokenizer.decode(tokenizer.encode(images)) - images).abs().max() < 1e-4


@pytest.mark.parametrize("d", [1, 8, 16, 40])
def test_pca_error_is_the_sum_of_the_dropped_eigenvalues(images, d):
    tokenizer = fitted(images, d)
    lost = patchify(images - tokenizer.decode(tokenizer.encode(images)), 4).double() ** 2
    assert lost.sum(1).mean().item() == pytest.approx(tokenizer.eigenvalues[d:].sum().item(), rel=1e-4)


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_latents_have_unit_average_variance(images, scaling):
    for kind in (PatchPCA, Pixel):
        tokenizer = kind(SHAPE, 4, 16, scaling) if kind is PatchPCA else kind(SHAPE, 4, scaling)
        tokenizer.fit(images.split(64))
        variance = tokenizer.encode(images).double().var((0, 2, 3), correction=0)
        assert variance.mean().item() == pytest.approx(1, abs=1e-3)
        if scaling == "each":
            assert (variance - 1).abs().max() < 1e-3


def test_pixel_latents_are_the_patches_and_lose_nothing(images):
    tokenizer = Pixel(SHAPE, 4)
    tokenizer.fit(images.split(64))
    assert tokenizer.shape == (48, 8, 8)
    assert (tokenizer.decode(tokenizer.encode(images)) - images).abs().max() < 1e-5
    assert torch.equal(tokenizer.rotate(images), patchify(images, 4))


def test_identity_is_the_pixels_bit_for_bit_and_fitted_from_the_start(images, tmp_path):
    for channels in (3, 1):
        tokenizer, x = Identity((channels, 32, 32)), images[:, :channels]
        tokenizer.fit(iter(()))
        assert torch.equal(tokenizer.encode(x), x)
        assert torch.equal(tokenizer.encode(x, BatchGenerator([0])), x)
        assert torch.equal(tokenizer.decode(3 * x), 3 * x)
        assert tokenizer.shape == (channels, 32, 32)
        assert (tokenizer.is_costly, tokenizer.needs_training, len(list(tokenizer.parameters()))) == (False, False, 0)
        assert torch.equal(tokenizer.filters()[..., 0, 0], torch.eye(channels))
        sha = save_tokenizer(tmp_path / "t", tokenizer, {}, "data")
        assert load_tokenizer(tmp_path / "t", Identity((channels, 32, 32)), sha) == sha


def test_decode_never_clips(images):
    for tokenizer in (fitted(images), fitted(images, scaling="each")):
        loud = 10 * tokenizer.encode(images)
        assert tokenizer.decode(loud).abs().max() > 2


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_noise_in_the_latent_is_noise_along_the_basis_in_the_image(images, scaling):
    """decode(z + sigma eps) = decode(z) + V^T (scale sigma eps); its variance is d sigma^2 / D of full noise."""
    tokenizer, sigma = fitted(images, scaling=scaling), 0.7
    z = tokenizer.encode(images)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    added = tokenizer.decode(z + sigma * eps) - tokenizer.decode(z)
    along = torch.einsum("dD,bdhw->bDhw", tokenizer.basis[:16], tokenizer.scale * sigma * eps)
    assert torch.allclose(patchify(added, 4), along, atol=1e-4)
    if scaling == "one":
        full = (tokenizer.scale[0] * sigma) ** 2  # variance of noise in all D dimensions at that scale
        assert (added.var() / full).item() == pytest.approx(16 / 48, rel=0.02)


def test_rotation_keeps_lengths(images):
    tokenizer = fitted(images)
    assert torch.allclose((tokenizer.rotate(images) ** 2).sum(), (images**2).sum(), rtol=1e-5)


def test_filters_of_a_pca_are_its_scaled_basis(images):
    tokenizer = fitted(images)
    expected = unpatchify((tokenizer.basis[:16] * tokenizer.scale[:, 0])[:, :, None, None], 4)
    assert torch.allclose(tokenizer.filters(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("patch", "d", "message"),
    [(5, 4, "patch=5 does not divide"), (4, 49, r"d=49 exceeds 3\*p\*p=48; lower tokenizer.d")],
)
def test_impossible_sizes_are_refused_with_the_rule(patch, d, message):
    with pytest.raises(ConfigError, match=message):
        PatchPCA(SHAPE, patch, d)


def trained(kind, images, steps, **settings):
    torch.manual_seed(0)
    tokenizer = kind(SHAPE, 4, 4, **settings)
    tokenizer.fit(images.split(64))
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = tokenizer.loss(images, BatchGenerator([step]))
        loss.backward()
        optimizer.step()
    tokenizer.calibrate(images.split(64))
    return tokenizer, loss.item()


def test_linear_autoencoder_converges_to_the_subspace_of_pca(images):
    """Baldi and Hornik 1989: the optimum of a linear autoencoder is the leading principal subspace."""
    tokenizer, loss = trained(PatchAE, images[::3], 1000)
    pca = fitted(images[::3], d=4)
    assert loss == pytest.approx(pca.eigenvalues[4:].sum().item(), rel=0.02)
    angles = torch.linalg.svdvals(torch.linalg.qr(tokenizer.U.T)[0].T @ pca.basis[:4].T)
    assert angles.min() > 0.99  # cosines of the principal angles between the two subspaces
    assert tokenizer.encode(images[::3]).double().var((0, 2, 3), correction=0).mean().item() == pytest.approx(
        1, abs=1e-3
    )


def test_vae_loss_is_reconstruction_plus_weighted_kl(images):
    torch.manual_seed(1)
    tokenizer = PatchVAE(SHAPE, 4, 4, kl=0.5)
    tokenizer.fit(images.split(64))
    loss, metrics = tokenizer.loss(images, BatchGenerator([0]))
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert loss.item() == pytest.approx(means["reconstruction"] + 0.5 * means["kl"], rel=1e-4)
    # KL of N(V x, s^2) against N(0, I), from torch.distributions
    patches = tokenizer.centred(images)
    mean = tokenizer.to_raw(images)
    spread = torch.exp(tokenizer.log_variance(patches) / 2)
    normal = torch.distributions.Normal
    reference = torch.distributions.kl_divergence(normal(mean, spread), normal(0.0, 1.0)).sum(1).mean()
    assert means["kl"] == pytest.approx(reference.item(), rel=1e-4)


def test_vae_shrinks_and_drops_dimensions_as_the_theory_of_linear_vaes_says(images):
    """At weight 1 the noise has variance 1/2: an eigendirection l is given back as 1 - 1/(2 l), those below 1/2 not
    at all (probabilistic PCA; Lucas et al. 2019)."""
    tokenizer, _ = trained(PatchVAE, images[::3], 1000, kl=1.0)
    pca = fitted(images[::3], d=4)
    along = ((pca.basis[:4] @ tokenizer.U.T) * (pca.basis[:4] @ tokenizer.V.T)).sum(1)
    expected = (1 - 0.5 / pca.eigenvalues[:4]).clamp(min=0).float()
    assert int((expected > 0).sum()) == 2
    assert (along - expected).abs().max() < 0.04


def test_a_file_gives_back_the_same_tokenizer_and_damage_is_seen(images, tmp_path):
    tokenizer, path = fitted(images, scaling="each"), tmp_path / "t.safetensors"
    sha = save_tokenizer(path, tokenizer, {"d": 16}, "data")
    other = PatchPCA(SHAPE, 4, 16, "each")
    assert load_tokenizer(path, other, sha) == sha
    assert torch.equal(other.encode(images), tokenizer.encode(images))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        load_tokenizer(path, PatchPCA(SHAPE, 4, 8))
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_tokenizer(path, other, sha)


def test_an_unfitted_tokenizer_is_neither_saved_nor_loaded(tmp_path):
    with pytest.raises(NotFittedError, match="not fitted"):
        save_tokenizer(tmp_path / "t", PatchPCA(SHAPE, 4, 16), {}, "")


SMALL_CONV = {"z_channels": 4, "channels": 8, "multipliers": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PatchPCA, {"patch": 4, "d": 16}),
        (PatchAE, {"patch": 4, "d": 16}),
        (PatchVAE, {"patch": 4, "d": 16}),
        (Pixel, {"patch": 4}),
        (ConvVAE, SMALL_CONV),
        (VQ, {**SMALL_CONV, "codes": 8}),
    ],
)
def test_an_unfitted_tokenizer_refuses_to_encode_and_decode_until_it_is_fitted_or_loaded(kind, settings, tmp_path):
    tokenizer, loaded = kind(SHAPE, **settings), kind(SHAPE, **settings)
    x, z = torch.rand(2, *SHAPE) * 2 - 1, torch.zeros(2, *tokenizer.shape)
    for refused in (
        lambda: tokenizer.encode(x),
        lambda: tokenizer.encode(x, BatchGenerator([0])),
        lambda: tokenizer.posterior_params(x),
        lambda: tokenizer.decode(z),
    ):
        with pytest.raises(NotFittedError, match=f"tokenizer {kind.__name__} is not fitted; .*, or load it"):
            refused()
    assert tokenizer.filters().shape[0] == tokenizer.shape[0]  # drawn in the course of a training
    tokenizer.fit([x])
    if tokenizer.needs_training:
        tokenizer.calibrate([x])
    save_tokenizer(tmp_path / "t", tokenizer, {}, "")
    load_tokenizer(tmp_path / "t", loaded)
    assert torch.equal(loaded.encode(x), tokenizer.encode(x))
    assert loaded.decode(z).shape == x.shape


def test_a_residual_has_no_coordinates_on_a_basis_that_was_never_fitted():
    with pytest.raises(NotFittedError):
        PatchPCA(SHAPE, 4, 16).rotate(torch.zeros(1, *SHAPE))


def test_a_tokenizer_is_used_by_its_constructor_alone(images):
    tokenizer = PatchPCA(image_shape=SHAPE, patch=4, d=16).fit(images.split(64))
    z = tokenizer.encode(images[:5])
    assert z.shape == (5, 16, 8, 8)
    assert tokenizer.decode(z).shape == (5, *SHAPE)
    assert torch.equal(z, fitted(images).encode(images[:5]))


@pytest.mark.parametrize("kind", [PatchPCA, PatchAE, PatchVAE])
def test_fit_returns_the_tokenizer(images, kind):
    tokenizer = kind(SHAPE, 4, 16)
    assert tokenizer.fit(images.split(64)) is tokenizer


def test_a_plot_has_the_filters_and_reconstructions(images, tmp_path):
    tokenizer = fitted(images)
    filters = tokenizer.plot(tmp_path / "filters.png")
    assert (tmp_path / "filters.png").stat().st_size > 1000
    (mosaic,) = filters.axes[0].get_images()
    assert mosaic.get_array().shape == (5, 16 * 5, 3)  # 16 filters of 4 x 4 in a row, with borders
    first = tokenizer.filters()[0]
    expected = (first / first.abs().max() + 1) / 2
    np.testing.assert_allclose(mosaic.get_array()[:4, :4], expected.movedim(0, -1), atol=1e-6)
    figure = tokenizer.plot(images=images[:6])
    assert [axes.get_title() for axes in figure.axes] == ["filters", "original above reconstruction"]
    picture = figure.axes[1].get_images()[0].get_array()
    assert picture.shape == (2 * 33, 6 * 33, 3)
    np.testing.assert_allclose(picture[:32, :32], ((images[0] + 1) / 2).movedim(0, -1), atol=1e-6)
    decoded = (tokenizer.decode(tokenizer.encode(images[:1]))[0] + 1) / 2
    np.testing.assert_allclose(picture[33:65, :32], decoded.clamp(0, 1).movedim(0, -1), atol=1e-5)

"""Losses of an objective: formulas, optima, weights of subspaces."""

from __future__ import annotations

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.nn.patchify import patchify, to_tokens
from ldae.objectives.losses import L1, L2, PCAWeighted, SpanWeighted
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.patch_linear import PatchAE, PatchPCA, PatchVAE
from ldae.tokenizers.pixel import Identity, Pixel


def test_errors_are_means_over_the_numbers_of_each_image():
    out, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    out[0, 0, 0, 0], y[1, 2] = 4.8, -2.0  # one of 48 numbers; 16 of 48
    assert L1()(out, y).tolist() == pytest.approx([0.1, 2 / 3])
    assert L2()(out, y).tolist() == pytest.approx([0.48, 4 / 3])
    assert torch.equal(L1()(y, out), L1()(out, y))


@pytest.mark.parametrize(("metric", "best"), [(L1(), 0.1), (L2(), 0.42)])
def test_the_absolute_error_asks_for_the_median_the_squared_one_for_the_mean(metric, best):
    y = torch.tensor([0.0, 0.05, 0.1, 0.15, 1.8])[:, None, None, None]
    answers = torch.linspace(-1, 2, 301)
    losses = torch.stack([metric(a.expand_as(y), y).mean() for a in answers])
    assert answers[losses.argmin()].item() == pytest.approx(best, abs=1e-4)


class _Image:
    latent = False


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [0, 3, 8, 12])
def test_weights_are_finite_where_patches_have_a_rank_below_d(whiten, rank):
    tokenizer = PatchPCA((3, 4, 4), 2, 8)
    tokenizer.eigenvalues = torch.where(torch.arange(12) < rank, 2.0 ** -torch.arange(12), 0).double()
    w = PCAWeighted(tokenizer, _Image(), 0.1, whiten).weights().flatten()
    assert w[:8].mean() == pytest.approx(1)
    known = min(rank, 8)
    relative = 2.0 ** (whiten * torch.arange(known)) if rank else torch.ones(1)
    expected = torch.cat([relative, relative[-1:].expand(8 - len(relative))])
    assert torch.allclose(w[:8], expected / expected.mean(), rtol=1e-5)
    assert torch.allclose(w[8:], 0.1 * w[7].expand(4))


def images(count=64, side=8, seed=0):
    """Smooth images, so that the spans of a PCA and of a fitted decoder are well determined."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, side, side, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1).clamp(-1, 1)


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_the_span_of_a_pca_weights_as_its_basis_does(scaling):
    tokenizer = PatchPCA((3, 8, 8), 4, 5, scaling).fit([images()])
    out, y = images(seed=1), images(seed=2)
    torch.testing.assert_close(
        SpanWeighted(tokenizer, _Image(), 0.1)(out, y), PCAWeighted(tokenizer, _Image(), 0.1)(out, y)
    )


@pytest.mark.parametrize("kind", [PatchAE, PatchVAE])
def test_the_span_of_a_linear_decoder_is_that_of_its_rows_whatever_their_lengths(kind):
    torch.manual_seed(0)
    tokenizer = kind((3, 8, 8), 4, 6)
    tokenizer.fitted.fill_(True)
    P = SpanWeighted(tokenizer, _Image()).projector()
    rows = tokenizer.decoder.detach()
    assert P.trace() == pytest.approx(6, abs=1e-4)
    torch.testing.assert_close(P @ P, P, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows @ P, rows, atol=1e-5, rtol=0)
    Q, _ = torch.linalg.qr(rows.T.double())
    torch.testing.assert_close(P.double(), Q @ Q.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token", [1, 2])
def test_errors_that_a_convolutional_decoder_can_make_count_fully_and_others_by_the_tail(token):
    torch.manual_seed(0)
    tokenizer = ConvVAE((3, 8, 8), 2, 8, [1, 2], token=token)
    tokenizer.fitted.fill_(True)
    loss, p = SpanWeighted(tokenizer, _Image(), tail=0.25), 2 * token
    filters = tokenizer.token_filters()
    assert filters.shape == (2 * token**2, 3, p, p)
    P = loss.projector()
    assert P.trace() == pytest.approx(len(filters), abs=1e-3)
    y = torch.zeros(2, 3, 8, 8)
    y[0, :, p : 2 * p, p : 2 * p] = filters[1]  # in the span, at another token
    outside = to_tokens(patchify(torch.randn(1, 3, 8, 8), p))[0, 0]
    outside = outside - outside @ P
    y[1, :, :p, :p] = outside.reshape(p, p, 3).permute(2, 0, 1)
    expected = torch.stack([(y[0] ** 2).mean(), 0.25 * (y[1] ** 2).mean()])
    torch.testing.assert_close(loss(torch.zeros_like(y), y), expected, atol=1e-6, rtol=1e-4)


def test_a_span_needs_patches_and_an_image_as_output():
    class Latent:
        latent = True

    with pytest.raises(ConfigError, match="output=image"):
        SpanWeighted(Pixel((3, 8, 8), 4), Latent())
    with pytest.raises(ConfigError, match="tokenizer of patches"):
        SpanWeighted(Identity((3, 8, 8)), _Image())

"""The convolutional VAE: exact size, padding, loss (spec: tokenizers_vqgan.md)."""

from __future__ import annotations

import pytest
import torch

from ldae.errors import ConfigError
from ldae.nn.conv import Downsample
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.types import Draws


def small(**settings):
    torch.manual_seed(0)
    return ConvVAE((3, 16, 16), z_channels=4, channels=8, multipliers=[1, 2, 2], **settings)


def test_f8_has_the_published_parameters():
    with torch.device("meta"):
        f8 = ConvVAE((3, 256, 256), 4, 128, [1, 2, 4, 4], blocks=2, token=2)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(f8.encoder) == 34_163_592
    assert count(f8.decoder) == 49_490_179
    assert count(f8.moments) + count(f8.unmoments) == 92
    assert count(f8) == 83_653_863
    assert f8.shape == (4, 32, 32)
    assert f8.grid == (16, 16)


def test_shapes_there_and_back():
    vae, x = small(), torch.rand(2, 3, 16, 16)
    assert vae.encode(x).shape == (2, *vae.shape) == (2, 4, 4, 4)
    assert vae.decode(vae.encode(x)).shape == x.shape


def test_padding_is_at_the_right_and_the_bottom():
    """An impulse at (0, 0) meets the kernel's own first weight: nothing was padded before it (TF's SAME)."""
    down, x = Downsample(1), torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    out = down(x) - down.conv.bias
    assert out[0, 0, 0, 0] == down.conv.weight[0, 0, 0, 0]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = 1
    assert (down(x) - down.conv.bias)[0, 0, 1, 1].item() == pytest.approx(down.conv.weight[0, 0, 1, 1].item(), abs=1e-6)


def test_loss_is_summed_error_plus_weighted_kl_over_the_numbers_of_an_image():
    vae, x = small(kl=0.1), torch.rand(5, 3, 16, 16)
    loss, metrics = vae.loss(x, Draws([3]))
    mean, log_variance = vae.posterior(x)
    eps = Draws([3]).normal(mean.shape)
    error = ((vae.from_raw(mean + (log_variance / 2).exp() * eps) - x) ** 2).sum((1, 2, 3))
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum((1, 2, 3))
    assert loss.item() == pytest.approx((error + 0.1 * kl).mean().item() / 768, rel=1e-4)
    assert (metrics["kl"][0] / 5).item() == pytest.approx(kl.mean().item(), rel=1e-4)


def test_it_learns_to_give_an_image_back():
    vae, x = small(kl=0.0), torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2
    x[:4] += 0.5
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    first = None
    for step in range(60):
        optimizer.zero_grad()
        loss, _ = vae.loss(x, Draws([step]))
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < first / 5
    vae.calibrate([x])
    assert vae.encode(x).double().var((0, 2, 3), correction=0).mean().item() == pytest.approx(1, abs=1e-3)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"must divide data\.size"):
        ConvVAE((3, 18, 18), 4, 8, [1, 2, 2])

"""The convolutional VAE: exact size, padding, loss (arXiv 2112.10752)."""

from __future__ import annotations

import math

import pytest
import torch

from ldae.core.errors import CheckpointError, ConfigError
from ldae.core.files import save_tensors
from ldae.core.types import BatchGenerator
from ldae.nn.conv import Downsample
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.public import DIFFUSERS, LATENT_DIFFUSION, load_public, to_layout


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
    vae.calibrate([x])
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


def test_the_regulariser_is_kl_over_the_numbers_of_an_image():
    vae, x = small(kl=0.1), torch.rand(5, 3, 16, 16)
    answer, regulariser, metrics = vae.reconstruct(x, BatchGenerator([3]))
    mean, log_variance = vae.gaussian(x)
    raw = mean + (log_variance / 2).exp() * BatchGenerator([3]).normal(mean.shape)
    torch.testing.assert_close(answer, vae.from_raw(raw))
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(regulariser, 0.1 * kl / 768, rtol=1e-4, atol=0)
    assert (metrics["kl"][0] / 5).item() == pytest.approx(kl.mean().item(), rel=1e-4)


@pytest.mark.parametrize(("mean", "log_variance", "nats"), [(0.0, 0.0, 0.0), (1.0, 0.0, 0.5)])
def test_kl_at_known_posteriors(mean, log_variance, nats):
    """Per element: 0 at N(0, 1), 1/2 at N(1, 1); the gradient is 0 at N(0, 1)."""
    vae, x = small(kl=1.0), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        vae.moments.weight.zero_()
        vae.moments.bias[:4], vae.moments.bias[4:] = mean, log_variance
    _, regulariser, metrics = vae.reconstruct(x, BatchGenerator([0]))
    assert (metrics["kl"][0] / 2 / 64).item() == pytest.approx(nats, abs=1e-6)
    regulariser.sum().backward()
    assert bool(vae.moments.bias.grad.abs().max() == 0) == (nats == 0)


def test_latents_are_drawn_from_the_posterior():
    vae = small()
    with torch.no_grad():
        vae.moments.weight.zero_()
        vae.moments.bias[:4], vae.moments.bias[4:] = 2.0, 2 * math.log(0.5)
    vae.set_scale(torch.full((4,), 4.0))
    z = vae.encode(torch.rand(2000, 3, 16, 16), BatchGenerator([0]))
    assert z.mean().item() == pytest.approx(1.0, abs=0.01)
    assert z.std().item() == pytest.approx(0.25, rel=0.01)
    assert bool((vae.encode(torch.rand(2, 3, 16, 16)) == 1).all())


def test_posterior_parameters_of_an_image_give_its_latents():
    vae, x = small(), torch.rand(3, 3, 16, 16)
    vae.calibrate([x])
    posterior_params = vae.posterior_params(x)
    assert posterior_params.shape == (3, 8, 4, 4)
    assert torch.equal(vae.sample_posterior(posterior_params, BatchGenerator([5])), vae.encode(x, BatchGenerator([5])))
    torch.testing.assert_close(vae.sample_posterior(posterior_params), vae.encode(x))


def test_the_scale_is_that_of_drawn_latents():
    """Unit average variance of a dimension on images that it was not measured on; the scale is applied once."""
    vae, g = small(), torch.Generator().manual_seed(0)
    vae.calibrate(torch.rand(600, 3, 16, 16, generator=g).split(200))
    z = vae.encode(torch.rand(600, 3, 16, 16, generator=g), BatchGenerator([1]))
    assert z.var((0, 2, 3)).mean().item() == pytest.approx(1, abs=0.02)
    raw = vae.posterior(torch.rand(600, 3, 16, 16, generator=g))
    sample_posterior = raw[0] + raw[1] * torch.randn(raw[0].shape, generator=g)
    assert vae.scale.flatten()[0].item() == pytest.approx(
        sample_posterior.var((0, 2, 3)).mean().sqrt().item(), rel=0.02
    )
    x = torch.rand(2, 3, 16, 16, generator=g)
    torch.testing.assert_close(vae.decode(vae.encode(x)), vae.from_raw(vae.to_raw(x)))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"must divide data\.size"):
        ConvVAE((3, 18, 18), 4, 8, [1, 2, 2])


@pytest.mark.parametrize("layout", [DIFFUSERS, LATENT_DIFFUSION])
def test_public_weights_there_and_back(tmp_path, layout):
    """Ours -> another code's names -> ours: every weight arrives, in a network of the published shape."""
    torch.manual_seed(0)
    settings = {"z_channels": 4, "channels": 8, "multipliers": [1, 2, 4, 4], "blocks": 2, "attention": [4]}
    ours, other = ConvVAE((3, 32, 32), **settings), ConvVAE((3, 32, 32), **settings)
    theirs = to_layout(ours, layout)
    assert sum(v.numel() for v in theirs.values()) == sum(p.numel() for p in ours.parameters())
    save_tensors(tmp_path / "vae.safetensors", theirs)
    load_public(tmp_path / "vae.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))


def test_names_of_public_weights():
    """A few that are known, in both layouts; the two count the decoder's levels in opposite ways."""
    vae = ConvVAE((3, 32, 32), 4, 8, [1, 2, 4, 4], blocks=2)
    diffusers, original = to_layout(vae, DIFFUSERS), to_layout(vae, LATENT_DIFFUSION)
    known = ["encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "decoder.up_blocks.2.resnets.0.conv_shortcut.bias"]
    known += ["encoder.down_blocks.2.downsamplers.0.conv.weight", "decoder.mid_block.attentions.0.to_out.0.weight"]
    known += ["encoder.conv_norm_out.weight", "quant_conv.bias", "post_quant_conv.weight"]
    assert set(known) <= diffusers.keys()
    known = ["encoder.down.1.block.0.nin_shortcut.weight", "decoder.up.1.block.0.nin_shortcut.bias"]
    known += ["decoder.up.3.upsample.conv.weight", "decoder.mid.attn_1.proj_out.weight"]
    assert set(known) <= original.keys()
    assert not {"decoder.up.0.upsample.conv.weight", "encoder.down.3.downsample.conv.weight"} & original.keys()


def test_weights_of_something_else_are_refused(tmp_path):
    vae = ConvVAE((3, 32, 32), 4, 8, [1, 2])
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="neither"):
        load_public(tmp_path / "other.safetensors", vae)
    save_tensors(tmp_path / "large.safetensors", to_layout(ConvVAE((3, 32, 32), 4, 16, [1, 2]), DIFFUSERS))
    with pytest.raises(CheckpointError, match="another network"):
        load_public(tmp_path / "large.safetensors", vae)

"""The codebook: nearest codes, straight-through and codebook gradients (arXiv 1711.00937, 2012.09841)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ldae.core.types import BatchGenerator
from ldae.tokenizers.vq import VQ


def small(**settings):
    torch.manual_seed(0)
    vq = VQ((3, 16, 16), z_channels=3, channels=8, multipliers=[1, 2], codes=16, **settings)
    with torch.no_grad():
        vq.codebook.normal_()
    return vq


def gradients(beta):
    """Gradients of the codebook's loss alone, at the codes and at the encoder's last convolution."""
    vq = small(commitment=beta)
    _, loss, _ = vq.reconstruct(
        torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)), BatchGenerator([0])
    )
    loss.mean().backward()
    return vq.codebook.grad, vq.before.weight.grad


def test_the_nearest_code_by_explicit_distances():
    vq, raw = small(), torch.randn(2, 3, 5, 5)
    codes, index = vq.quantise(raw)
    for b, i, j in [(0, 0, 0), (1, 4, 2), (0, 3, 3)]:
        distances = ((vq.codebook - raw[b, :, i, j]) ** 2).sum(1)
        assert index[b, i, j] == distances.argmin()
        assert torch.equal(codes[b, :, i, j], vq.codebook[index[b, i, j]])


def test_codes_are_their_own_nearest():
    vq = small()
    raw = vq.codebook.detach().T.reshape(1, 3, 4, 4)
    codes, index = vq.quantise(raw)
    assert torch.equal(index.flatten(), torch.arange(16))
    assert F.mse_loss(codes, raw).item() == 0


def test_gradients_pass_the_codes_as_if_nothing_were_replaced(monkeypatch):
    """d answer / d raw is that of the decoder at the codes: the quantiser's own Jacobian is the identity."""
    vq, x = small().double(), torch.rand(2, 3, 16, 16).double()
    raw = vq.to_raw(x).double().detach().requires_grad_()
    monkeypatch.setattr(vq, "to_raw", lambda _: raw)
    answer, _, _ = vq.reconstruct(x, BatchGenerator([0]))
    (through,) = torch.autograd.grad(answer.square().sum(), raw)
    codes = vq.quantise(raw)[0].detach().requires_grad_()
    (direct,) = torch.autograd.grad(vq.decoder(vq.after(codes)).square().sum(), codes)
    torch.testing.assert_close(through, direct)


def test_beta_weighs_the_pull_on_the_encoder_alone():
    """Halving it halves the encoder's gradient and leaves the codebook's: not so in the published code."""
    (codes, encoder), (codes_half, encoder_half) = gradients(0.5), gradients(0.25)
    torch.testing.assert_close(codes, codes_half)
    torch.testing.assert_close(encoder, 2 * encoder_half)
    assert codes.abs().max() > 0
    assert gradients(0.0)[1].abs().max() == 0


def test_decoding_quantises():
    vq, x = small(), torch.rand(2, 3, 16, 16)
    raw = vq.to_raw(x)
    assert torch.equal(vq.from_raw(raw), vq.from_raw(vq.quantise(raw)[0]))


def test_use_of_the_codebook():
    vq = small()
    with torch.no_grad():
        vq.codebook[1:] = 100.0  # all latents are nearest to code 0
        vq.codebook[0] = 0.0
    statistics = vq.statistics(torch.rand(4, 3, 16, 16))
    assert statistics["codes_used"] == 1 / 16
    assert statistics["code_perplexity"] == pytest.approx(1)


def test_shapes_of_f16():
    with torch.device("meta"):
        vq = VQ((3, 256, 256), 256, 128, [1, 1, 2, 2, 4], codes=1024, blocks=2, attention=[16])
    assert vq.shape == (256, 16, 16)
    attention = [name for name, m in vq.encoder.named_modules() if type(m).__name__ == "SpatialAttention"]
    assert len(attention) == 3  # after each of the two blocks at 16 x 16, and in the middle

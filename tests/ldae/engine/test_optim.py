"""Optimizers: the update of each parameter, and the law of Muon's step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldae.core.errors import ConfigError
from ldae.denoisers.mae import MaskedAutoencoder
from ldae.denoisers.vit import ViTDenoiser
from ldae.engine.muon import MuonOptimizer, orthogonalise
from ldae.engine.optim import AdamW, Muon, can_skip


def vit():
    torch.manual_seed(0)
    return ViTDenoiser((4, 4, 4), (4, 4, 4), (4, 4), width=16, encoder_depth=1, decoder_depth=1, heads=2)


def mae():
    torch.manual_seed(0)
    return MaskedAutoencoder((3, 8, 8), 2, 16, 1, 2, decoder_width=8, decoder_depth=1, decoder_heads=2)


def random_gradients(network):
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize(("network", "count"), [(vit(), 8), (mae(), 8)])
def test_every_parameter_is_updated_once_and_muon_has_the_matrices_of_blocks(network, count):
    optimizer = Muon(blr=1.0).build(network)
    muon, adamw = optimizer.optimizers
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    matrices = sorted(names[id(p)] for group in muon.param_groups for p in group["params"])
    rest = sorted(names[id(p)] for group in adamw.param_groups for p in group["params"])
    assert len(matrices) == count
    assert all(name.split(".")[-3] in ("attn", "mlp") and name.endswith("weight") for name in matrices)
    assert sorted(matrices + rest) == sorted(names.values())


def newton_schulz(matrix, steps=5):
    """The quintic iteration of Muon on the singular values, f(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5, in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


def test_a_muon_step_is_the_iteration_on_singular_values_with_the_size_of_an_adamw_step():
    """The first Nesterov momentum is parallel to the gradient; AdamW's first step has magnitude lr in each entry."""
    network = vit()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = Muon(blr=1.0).build(network)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    random_gradients(network)
    gradients = {name: value.grad.clone() for name, value in network.named_parameters()}
    optimizer.step()
    for name, value in network.named_parameters():
        change = (value.detach() - before[name]) / 0.01
        if (".attn." in name or ".mlp." in name) and value.ndim == 2:
            expected = -0.2 * max(value.shape) ** 0.5 * newton_schulz(gradients[name])
            assert (change - expected).norm() < 0.02 * expected.norm(), name  # bfloat16 where that is native
        else:
            torch.testing.assert_close(change.abs(), torch.ones_like(change), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8)])
def test_in_float32_the_iteration_is_exact(shape):
    matrices = torch.randn(3, *shape)
    for matrix, orthogonal in zip(matrices, orthogonalise(matrices), strict=True):
        torch.testing.assert_close(orthogonal.double(), newton_schulz(matrix), atol=1e-4, rtol=0)


def test_steps_are_those_of_torch_up_to_its_bfloat16():
    ours, theirs = ([nn.Parameter(m.clone()) for m in matrices] for matrices in [torch.randn(3, 16, 40).unbind()] * 2)
    a = MuonOptimizer(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    begin = [m.detach().clone() for m in ours]
    for _ in range(4):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn_like(x)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, start in zip(ours, theirs, begin, strict=True):
        assert (x - y).norm() < 0.03 * (y - start).norm()


def test_parameters_outside_of_blocks_are_updated_as_by_adamw():
    a, b = vit(), vit()
    for network, optim in ((a, Muon(blr=0.01)), (b, AdamW(blr=0.01))):
        torch.manual_seed(1)
        optimizer = optim.build(network)
        for _ in range(3):
            random_gradients(network)
            optimizer.step()
    assert torch.equal(a.embed.weight, b.embed.weight)
    assert torch.equal(a.blocks[0].ada.linear.weight, b.blocks[0].ada.linear.weight)
    assert not torch.equal(a.blocks[0].mlp.fc1.weight, b.blocks[0].mlp.fc1.weight)


def test_the_rate_of_the_matrices_is_a_multiple_of_that_of_the_rest():
    scales = [group.get("lr_scale", 1.0) for group in Muon(blr=0.01, ratio=3.0).build(vit()).param_groups]
    assert scales == [3.0, 1.0, 1.0]


def test_networks_without_blocks_are_refused():
    with pytest.raises(ConfigError, match="Linear has none; use optim=adamw"):
        Muon(blr=0.01).build(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="momentum"):
        Muon(blr=0.01, momentum=1.0)


@pytest.mark.parametrize("optim", [AdamW(blr=0.01), Muon(blr=0.01, weight_decay=0.1)])
def test_found_inf_leaves_weights_and_moments_as_they_are_and_zero_of_it_changes_nothing(optim):
    networks = [vit(), vit()]
    optimizers = [optim.build(network) for network in networks]
    assert can_skip(optimizers[0])
    for _ in range(2):
        for network, optimizer in zip(networks, optimizers, strict=True):
            torch.manual_seed(1)
            random_gradients(network)
            optimizer.found_inf = torch.zeros(()) if network is networks[0] else None
            optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    tensors = [*networks[0].parameters(), *(v for state in optimizers[0].state.values() for v in state.values())]
    before = [tensor.detach().clone() for tensor in tensors]
    for parameter in networks[0].parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizers[0].found_inf = torch.ones(())
    optimizers[0].step()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

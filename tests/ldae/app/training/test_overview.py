"""The summary that a training prints at its start."""

from __future__ import annotations

import pytest
import torch

from ldae.app.compose import compose, resolved
from ldae.app.session import Session
from ldae.app.training.overview import _latent, _plain, encoder_parameters


def test_the_encoder_is_what_its_tokens_depend_on():
    objective = Session(resolved(compose("pretrain", ["experiment=ldae/digits"]))).parts.objective
    objective.tokenizer.assume_fitted()
    net = objective.network
    own = sum(p.numel() for m in (net.embed, net.level, *net.blocks[:2]) for p in m.parameters())
    assert encoder_parameters(objective, 8) == own
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("experiment", ["mae/cifar10_cpu", "ddpm/cifar10_cpu", "sr3/cifar10_cpu", "dit/cifar10_cpu"])
def test_every_kind_of_network_has_an_encoder_smaller_than_itself(experiment):
    argv = [f"experiment={experiment}", "data=digits"]
    objective = Session(resolved(compose("pretrain", argv))).parts.objective
    if objective.tokenizer is not None:
        objective.tokenizer.assume_fitted()
    whole = sum(p.numel() for p in objective.network.parameters() if p.requires_grad)
    assert 0.05 * whole < encoder_parameters(objective, 8) < whole


def test_the_latent_is_told_with_the_variance_that_it_keeps():
    objective = Session(resolved(compose("pretrain", ["experiment=ldae/digits", "data.d=2"]))).parts.objective
    objective.tokenizer.eigenvalues.copy_(torch.tensor([6.0, 2.0, 1.6, 0.4, *[0.0] * 8], dtype=torch.float64))
    assert _latent(objective) == {
        "latent": "2 of the 12 dimensions of a patch, 80.0 % of its variance (95 % needs 3)",
    }
    objective = Session(resolved(compose("pretrain", ["experiment=mae/cifar10_cpu", "data=digits"]))).parts.objective
    assert _latent(objective) == {}


@pytest.mark.parametrize(
    ("name", "argv"),
    [("PatchPCA", "patch PCA"), ("LinearSigma", "linear sigma"), ("X0", "x0"), ("MinSNR", "min SNR"), ("VQ", "VQ"),
     ("DDPMLinear", "DDPM linear"), ("AdamW", "AdamW"), ("ConvVAE", "conv VAE"), ("LinearGamma2", "linear gamma2")],
)  # fmt: skip
def test_classes_have_plain_names(name, argv):
    assert _plain(name) == argv

"""Adversarial training: hinge values, the adaptive weight, gradients of each module (arXiv 2012.09841)."""

from __future__ import annotations

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator
from ldae.nn.patch_gan import PatchGAN
from ldae.nn.perceptual import Classifier
from ldae.objectives.autoencode import Autoencode, adaptive_weight, hinge
from ldae.objectives.classify import Classify
from ldae.tasks.images import Images
from ldae.tokenizers.conv_vae import ConvVAE
from ldae.tokenizers.pixel import Pixel


def batch(seed=0, count=4):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(count) % 3, torch.arange(count))


def objective(start=0, factor=0.5, perceptual=None, head_start=0, **settings):
    torch.manual_seed(0)
    vae = ConvVAE((3, 16, 16), z_channels=4, channels=8, multipliers=[1, 2], kl=0.0)
    return Autoencode(Images(), vae, perceptual, PatchGAN(8, 1, factor, start, head_start), **settings)


def test_patch_gan_has_the_published_parameters_and_field():
    gan = PatchGAN().eval()
    assert sum(p.numel() for p in gan.parameters()) == 2_765_633
    x = torch.randn(1, 3, 256, 256, requires_grad=True)
    logits = gan(x)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_hinge_at_known_logits():
    assert hinge(torch.tensor([2.0]), torch.tensor([-2.0])).item() == 0
    assert hinge(torch.zeros(3), torch.zeros(3)).item() == 1
    assert hinge(torch.tensor([0.5]), torch.tensor([0.0])).item() == pytest.approx(0.75)


def test_the_adaptive_weight_takes_out_the_scale_of_the_adversarial_loss():
    w = torch.randn(5, requires_grad=True)
    reconstruction, adversarial = (w**2).sum(), (w**3).sum()
    grad = torch.autograd.grad(adversarial, w, retain_graph=True)[0]
    once = adaptive_weight(reconstruction, adversarial, w) * grad
    ten = adaptive_weight(reconstruction, 10 * adversarial, w) * 10 * grad
    torch.testing.assert_close(once, ten, rtol=0.01, atol=0)
    assert once.norm().item() == pytest.approx(torch.autograd.grad(reconstruction, w)[0].norm().item(), rel=1e-3)


def test_the_adaptive_weight_has_bounds_and_needs_gradients():
    w = torch.randn(5, requires_grad=True)
    assert adaptive_weight((1e9 * w).sum(), (1e-9 * w).sum(), w).item() == 1e4
    with torch.no_grad():
        assert adaptive_weight((w**2).sum(), (w**3).sum(), w).item() == 0


def test_before_its_start_there_is_no_adversarial_loss_and_no_update():
    waiting, absent = objective(start=10), objective(start=10)
    absent.discriminators = {}
    assert waiting.trainable_modules["discriminator"].is_active(9) is False
    assert waiting.is_active(9)
    absent.is_active(9)
    (loss, measured), (plain, _) = (o(batch(), BatchGenerator([0])) for o in (waiting, absent))
    assert loss.item() == plain.item()
    assert "fooled" not in measured
    loss.backward()
    discriminator = waiting.trainable_modules["discriminator"].network
    assert all(p.grad is None for p in discriminator.parameters())
    assert waiting.trainable_modules["discriminator"].is_active(10) is True


def test_with_a_head_start_the_discriminator_learns_before_the_tokenizer_feels_it():
    early, absent = objective(start=2, head_start=3), objective()
    absent.discriminators = {}
    for step, learns, felt in ((1, False, False), (2, True, False), (4, True, False), (5, True, True)):
        early.is_active(step), absent.is_active(step)
        assert early.trainable_modules["discriminator"].is_active(step) is learns
        loss, measured = early(batch(), BatchGenerator([0]))
        assert ("fooled" in measured) is felt
        assert (loss.item() != absent(batch(), BatchGenerator([0]))[0].item()) is felt
        if learns:
            early.trainable_modules["discriminator"](batch(), BatchGenerator([0]))[0].backward()
    assert not early.trainable_modules["discriminator"].pairs


def test_gradients_of_each_module_are_separate():
    both = objective()
    tokenizer, opponent = both.trainable_modules["tokenizer"], both.trainable_modules["discriminator"]
    tokenizer.is_active(0)
    loss, measured = tokenizer(batch(), BatchGenerator([0]))
    loss.backward()
    assert measured["adaptive_weight"][0] > 0
    assert all(p.grad is None for p in opponent.network.parameters())
    assert all(p.requires_grad for p in opponent.network.parameters())
    before = [p.grad.clone() for p in tokenizer.network.parameters()]
    opponent(batch(), BatchGenerator([0]))[0].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, tokenizer.network.parameters(), strict=True))
    assert any(p.grad.abs().max() > 0 for p in opponent.network.parameters())
    assert not opponent.pairs


def test_the_adversarial_gradient_at_the_last_weight_has_the_configured_norm():
    """lambda g = factor ||grad reconstruction||: the loss's gradient there is a sum of two known vectors."""
    requested, plain = objective(factor=0.3), objective(factor=0.3)
    requested.is_active(0)
    grads = []
    for module in (requested, plain):  # the discriminator of `plain` is not active: its loss has no adversarial term
        loss, _ = module(batch(), BatchGenerator([0]))
        grads.append(torch.autograd.grad(loss, module.tokenizer.last_weight)[0])
    both, alone = grads
    assert (both - alone).norm().item() == pytest.approx(0.3 * alone.norm().item(), rel=0.01)


def test_the_discriminator_learns_to_tell_a_fixed_reconstruction():
    both = objective()
    opponent = both.trainable_modules["discriminator"]
    optimizer = torch.optim.Adam(opponent.network.parameters(), lr=2e-3)
    for step in range(60):
        both.is_active(0)
        with torch.no_grad():
            both(batch(step), BatchGenerator([step]))
        optimizer.zero_grad()
        loss, _ = opponent(batch(step), BatchGenerator([step]))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_the_discriminator_is_not_among_the_tokenizers_weights():
    both = objective()
    assert not any("layers" in name for name in both.state_dict() if "opponent" in name or "discrim" in name)
    own = {id(p) for p in both.parameters()}
    assert not own & {id(p) for p in both.trainable_modules["discriminator"].network.parameters()}


def test_without_both_it_is_the_plain_loss_of_a_vae():
    torch.manual_seed(0)
    vae, data = ConvVAE((3, 16, 16), 4, 8, [1, 2], kl=0.1), batch()
    loss, _ = Autoencode(Images(), vae, None, None)(data, BatchGenerator([3]))
    x0 = 2 * data.images - 1
    mean, log_variance = vae.gaussian(x0)
    answer = vae.from_raw(mean + (log_variance / 2).exp() * BatchGenerator([3]).normal(mean.shape))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))
    expected = (((answer - x0) ** 2).sum((1, 2, 3)) + 0.1 * kl).mean() / 768
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_perceptual_network_adds_its_distance_and_learns_nothing():
    torch.manual_seed(1)
    perceptual = Classifier(3, [8, 8], factor=2.0)
    having = objective(start=99, perceptual=perceptual)
    without = objective(start=99)
    (loss, measured), (plain, _) = (o(batch(), BatchGenerator([0])) for o in (having, without))
    assert loss.item() == pytest.approx(plain.item() + 2 * measured["perceptual"][0].item() / 4, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in perceptual.parameters())
    assert not any(m.training for m in perceptual.modules())
    having.train()
    assert not perceptual.training
    assert not any("blocks" in name for name in having.network.state_dict())


def test_it_learns_to_give_an_image_back():
    learner, data = objective(start=99), batch()
    plain = data.images * 0.2 + torch.tensor([0.0, 0.2, 0.5, 0.8]).reshape(4, 1, 1, 1)
    data = Batch(plain, data.labels, data.index)
    optimizer = torch.optim.Adam(learner.network.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss, _ = learner(data, BatchGenerator([step]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_a_classifier_learns_labels():
    torch.manual_seed(0)
    images = torch.rand(30, 3, 16, 16) * 0.2
    labels = torch.arange(30) % 3
    images[torch.arange(30), labels] += 0.8
    learner = Classify(Images(), Classifier(3, [8, 16]))
    optimizer = torch.optim.Adam(learner.network.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss, measured = learner(Batch(images, labels, torch.arange(30)), BatchGenerator([0]))
        loss.backward()
        optimizer.step()
    assert measured["accuracy"][0] == 30


def test_other_tokenizers_are_refused():
    with pytest.raises(ConfigError, match="not convolutional"):
        Autoencode(Images(), Pixel((3, 16, 16), 4), None, None)

"""Learned variance: the posterior, the bound's terms and their gradients (arXiv 2102.09672)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, expand
from ldae.diffusion.corruptions.base import Mixed
from ldae.diffusion.posterior import Posterior, discretised_nll, gaussian_kl
from ldae.diffusion.schedules import Cosine, DDPMLinear, LinearGamma2, LinearSigma
from ldae.diffusion.targets import X0, Eps, V
from ldae.diffusion.variance import LearnedRange
from ldae.objectives.denoise import LossInputs

SHAPE = (6, 4, 8, 8)
LATENT = ("input=latent", "output=latent", "target=eps", "schedule=ddpm_linear", "weight=one", "loss=l2")


def normal(seed, *shape):
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def add_noise(schedule, *t):
    """x0, eps, x_t and the level of steps `t`, one image each."""
    level = schedule.at(torch.tensor(t))
    x0, eps = normal(1, len(t), *SHAPE[1:]), normal(2, len(t), *SHAPE[1:])
    return x0, eps, expand(level.gamma, x0) * x0 + expand(level.sigma, x0) * eps, level


@pytest.mark.parametrize("schedule", [DDPMLinear(), Cosine(), LinearGamma2(), DDPMLinear(T=50)])
def test_a_step_back_undoes_a_step(schedule):
    """Marginals agree: mean and variance of x_{t-1} through x_t are those of x_{t-1}."""
    q, a = Posterior(schedule), schedule.gamma**2
    before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    assert torch.allclose(q.clean + q.noisy * a.sqrt(), before.sqrt(), rtol=0, atol=1e-12)
    assert torch.allclose(q.noisy**2 * (1 - a) + q.beta_tilde, 1 - before, rtol=0, atol=1e-12)
    assert q.log_beta_tilde[0] == q.log_beta_tilde[1]
    assert torch.allclose(q.log_beta_tilde[1:].exp(), q.beta_tilde[1:], rtol=1e-12, atol=0)
    assert (q.log_beta[1:] >= q.log_beta_tilde[1:]).all()


def test_posterior_has_the_betas_of_the_schedule():
    schedule = DDPMLinear()
    assert torch.allclose(Posterior(schedule).log_beta, schedule.beta.log(), rtol=1e-9, atol=0)


def test_the_mean_at_the_last_step_is_x0():
    schedule = DDPMLinear()
    x0, _, x_t, level = add_noise(schedule, 0, 0)
    assert torch.allclose(Posterior(schedule).mean(x0, x_t, level), x0, atol=1e-6)


def test_divergence_is_torchs():
    mean, other = normal(3), normal(4)
    log_variance, other_log = normal(5), normal(6)
    divergence = gaussian_kl(mean, log_variance, other, other_log)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(other, (other_log / 2).exp()))
    assert torch.allclose(divergence, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(gaussian_kl(mean, log_variance, mean, log_variance), torch.zeros(SHAPE))


LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize(("mean", "sigma"), [(0.1, 0.01), (-0.97, 0.05), (1.2, 0.3), (0.0, 1.0)])
def test_the_levels_probabilities_are_integrals_of_the_density_and_add_up_to_one(mean, sigma):
    mean_, log_variance = torch.full_like(LEVELS, mean), torch.full_like(LEVELS, 2 * math.log(sigma))
    nll = discretised_nll(LEVELS, mean_, log_variance)
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-6)
    density = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)).log_prob
    for k in (0, 1, 100, 139, 140, 254, 255):
        low = LEVELS[k] - 1 / 255 if k else torch.tensor(mean - 12 * sigma - 3)
        high = LEVELS[k] + 1 / 255 if k < 255 else torch.tensor(mean + 12 * sigma + 3)
        x = torch.linspace(float(low), float(high), 200_001, dtype=torch.float64)
        integral = torch.trapezoid(density(x).exp(), x).clamp(min=1e-12)
        assert nll[k].item() == pytest.approx(-integral.log().item(), abs=1e-5)


def test_v_goes_from_the_narrowest_to_the_widest_and_beyond():
    schedule = DDPMLinear()
    variance, level = LearnedRange(schedule, Eps()), schedule.at(torch.tensor([0, 1, 500, 999]))
    q = variance.posterior

    def at(v):
        return variance.log_variance(torch.cat([normal(1, 4, 3, 2, 2), torch.full((4, 3, 2, 2), v)], 1), level)

    narrowest, widest = at(-1.0), at(1.0)
    assert torch.allclose(narrowest, expand(q.log_beta_tilde[level.t].float(), narrowest).expand_as(narrowest))
    assert torch.allclose(widest, expand(q.log_beta[level.t].float(), widest).expand_as(widest))
    assert torch.allclose(at(0.0), (narrowest + widest) / 2)
    assert torch.allclose(at(3.0) - widest, widest - narrowest, atol=1e-5)


@pytest.mark.parametrize("target", [Eps(), X0(), V()], ids=lambda t: type(t).__name__)
def test_the_truth_with_the_true_variance_costs_nothing(target):
    schedule = DDPMLinear()
    x0, eps, x_t, level = add_noise(schedule, 1, 10, 100, 500, 900, 999)
    answer = torch.cat([target.of(x0, Mixed(eps), level), -torch.ones(SHAPE)], 1)
    vb = LearnedRange(schedule, target).bound(answer, x0, x_t, level)
    assert vb.abs().max() < 1e-5


def test_with_the_narrowest_variance_the_term_is_the_weighted_error():
    """Index 500: 0.005514462 times the mean squared error in eps, in nats (Eq. 12, arXiv 2006.11239)."""
    schedule = DDPMLinear()
    x0, eps, x_t, level = add_noise(schedule, 500, 500, 500)
    answer = torch.cat([eps + 0.3 * normal(9, 3, *SHAPE[1:]), -torch.ones_like(eps)], 1)
    vb = LearnedRange(schedule, Eps()).bound(answer, x0, x_t, level)
    error = ((answer[:, :4] - eps) ** 2).flatten(1).mean(1)
    assert torch.allclose(vb * math.log(2), 0.005514462 * error, rtol=1e-4)


def _reference_vb(out, x0, x_t, t):
    """Bits per number as improved DDPM's code has them, from betas, float64, its tanh for the normal distribution."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    product = torch.cumprod(1 - beta, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), product])[t]
    small = [(beta * (1 - torch.cat([torch.ones(1), product[:-1]])) / (1 - product))[max(t, 1)].log(), beta[t].log()]
    eps, v = out.double().chunk(2)
    log_variance = (v + 1) / 2 * small[1] + (1 - v) / 2 * small[0]
    guess = (x_t - (1 - product[t]).sqrt() * eps) / product[t].sqrt()
    mean, true = (
        (previous.sqrt() * beta[t] * x + (1 - beta[t]).sqrt() * (1 - previous) * x_t) / (1 - product[t])
        for x in (guess, x0.double())
    )
    if t:
        nats = kl_divergence(Normal(true, (small[0] / 2).exp()), Normal(mean, (log_variance / 2).exp()))
    else:
        below, above = (
            0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
            for z in ((x0 + d / 255 - mean) * torch.exp(-log_variance / 2) for d in (-1, 1))
        )
        inner = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
        nats = -inner.clamp(min=1e-12).log()
    return nats.mean() / math.log(2)


@pytest.mark.parametrize(("t", "tolerance"), [(0, 0.01), (1, 1e-4), (10, 1e-4), (500, 1e-4), (999, 1e-4)])
def test_the_term_is_that_of_improved_ddpm(t, tolerance):
    schedule = DDPMLinear()
    x0, eps, x_t, level = add_noise(schedule, t, t)
    out = torch.cat([eps + 0.5 * normal(9, 2, *SHAPE[1:]), normal(10, 2, *SHAPE[1:])], 1)
    vb = LearnedRange(schedule, Eps()).bound(out, x0, x_t, level)
    expected = [_reference_vb(o, clean, noisy, t).item() for o, clean, noisy in zip(out, x0, x_t, strict=True)]
    assert vb.tolist() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("t", [0, 1, 500])
def test_the_term_teaches_the_variance_and_not_the_prediction(t):
    schedule = DDPMLinear()
    x0, _, x_t, level = add_noise(schedule, t, t)
    out = normal(9, 2, 8, 8, 8).requires_grad_()
    variance = LearnedRange(schedule, Eps())
    variance.bound(out, x0, x_t, level).sum().backward()
    assert (out.grad[:, :4] == 0).all()
    assert (out.grad[:, 4:] != 0).any()
    assert torch.equal(variance.prediction(out), out[:, :4])


def test_gradient_descent_on_the_term_finds_the_variance_of_the_error():
    """The best ln variance is ln(beta_tilde + mean squared error of the posterior's mean)."""
    schedule = DDPMLinear()
    x0, eps, x_t, level = add_noise(schedule, 5, 5)
    variance, q = LearnedRange(schedule, Eps()), Posterior(schedule)
    wrong = eps + 1.0
    v = torch.zeros_like(eps, requires_grad=True)
    optimiser = torch.optim.Adam([v], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        variance.bound(torch.cat([wrong, v], 1), x0, x_t, level).sum().backward()
        optimiser.step()
    error = (q.mean(Eps().to_x0(wrong, x_t, level), x_t, level) - q.mean(x0, x_t, level)) ** 2
    expected = (q.beta_tilde[5].float() + error).log()
    assert (expected - q.log_beta_tilde[5]).min() > 0.1
    assert torch.allclose(variance.log_variance(torch.cat([wrong, v], 1), level), expected, atol=1e-3)


def test_a_fixed_variance_adds_nothing_and_leaves_the_answer_as_it_is(config):
    objective, out = Parts(config("pretrain", *LATENT)).objective, normal(1)
    level = DDPMLinear().at(torch.zeros(6, dtype=torch.long))
    losses, terms = objective.losses(out, out, LossInputs(out, out, out, level, None))
    assert not losses.any()
    assert terms == {}
    assert objective.prediction(out) is out
    assert objective.interpolation(out) is None
    assert type(objective).output_channels(objective.output) == objective.output.shape[0]


@pytest.mark.parametrize(
    ("schedule", "target", "sentence"),
    [
        (LinearSigma(), X0(), "schedule='LinearSigma' does not preserve variance"),
        (DDPMLinear(T=21), Eps(), None),
        (LinearGamma2(T=1), X0(), "two steps or more"),
        (LinearGamma2(), Eps(), "target='Eps' does not determine x0 at step t = 999 of LinearGamma2; use x0 or v"),
        (LinearGamma2(), V(), None),
    ],
)
def test_schedules_without_a_posterior_are_refused(schedule, target, sentence):
    if sentence is None:
        assert torch.isfinite(LearnedRange(schedule, target).posterior.clean).all()
    else:
        with pytest.raises(ConfigError, match=sentence):
            LearnedRange(schedule, target)


def learner(config, *argv):
    """Return small parts with a learned variance, their network past its zero start, and 16 images."""
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *LATENT, "objective=learned_variance", *argv))
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    parts.tokenizer.fit([2 * images - 1])
    with torch.no_grad():
        for i, p in enumerate(parts.denoiser.parameters()):
            p.add_(0.05 * normal(i, *p.shape))
    return parts, Batch(images, torch.zeros(16, dtype=torch.long), torch.arange(16))


def test_the_loss_is_the_squared_error_plus_the_term(config):
    parts, batch = learner(config)
    objective, network = parts.objective, parts.denoiser
    loss, metrics = objective(batch, BatchGenerator([7]))
    rng = BatchGenerator([7])
    level = parts.schedule.at(rng.integers(1000, 16))
    z0 = parts.tokenizer.encode(2 * batch.images - 1)
    eps = rng.normal(z0.shape)
    z_t = expand(level.gamma, z0) * z0 + expand(level.sigma, z0) * eps
    out = network(z_t, level)
    assert out.shape == (16, 2 * z0.shape[1], *z0.shape[2:])
    mse = ((out[:, : z0.shape[1]] - eps) ** 2).mean()
    vb = objective.variance.bound(out, z0, z_t, level).mean()
    assert loss.item() == pytest.approx((mse + vb).item(), rel=1e-5)
    total, count = metrics["vb"]
    assert (total / count).item() == pytest.approx(vb.item(), rel=1e-5)


def test_denoised_images_come_from_the_prediction_alone(config):
    """Another v gives the same image: denoised images do not depend on the variance."""
    parts, batch = learner(config)
    objective, d = parts.objective, parts.tokenizer.shape[0]
    level = parts.schedule.at(torch.full((16,), 300))
    _, before = objective.denoise(batch, level, BatchGenerator([5]))
    layer = parts.denoiser.head.linear
    with torch.no_grad():
        layer.bias.view(-1, 2 * d)[:, d:] += 1  # numbers of a token: (row, column, channel)
    assert torch.equal(objective.denoise(batch, level, BatchGenerator([5]))[1], before)
    with torch.no_grad():
        layer.bias.view(-1, 2 * d)[:, :d] += 1
    assert not torch.allclose(objective.denoise(batch, level, BatchGenerator([5]))[1], before, atol=1e-3)


def test_an_image_as_answer_has_no_variance_to_learn(config):
    argv = ("objective=learned_variance", "schedule=ddpm_linear", "weight=one")
    with pytest.raises(
        ConfigError, match=r"objective.part='DenoiseWithVariance' is built from the noise.*use output=latent"
    ):
        _ = Parts(config("pretrain", *argv)).objective

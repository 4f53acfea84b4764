"""Initial states of cold generation (Sec. 5, arXiv 2208.09392)."""

from __future__ import annotations

import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.files import load_tensors, save_tensors
from ldae.core.types import BatchGenerator
from ldae.diffusion.corruptions.base import State
from ldae.diffusion.corruptions.blend import Blend
from ldae.diffusion.corruptions.blur import Blur
from ldae.diffusion.corruptions.colour_mask import ColourMask
from ldae.diffusion.corruptions.gaussian import Gaussian
from ldae.diffusion.corruptions.mask import Mask
from ldae.diffusion.corruptions.pixelate import Pixelate
from ldae.diffusion.initial_states import CoarseMixture, MixedSignal, StyledSignal
from ldae.diffusion.schedules import Cosine

SHAPE = (3, 16, 16)
T = 8


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(count, seed=0):
    """Channels that go together, and some structure."""
    base = torch.randn(count, 1, 1, 1, generator=generator(seed)) * torch.tensor([0.3, 0.2, -0.1])[:, None, None]
    return (base + 0.2 + 0.3 * torch.randn(count, *SHAPE, generator=generator(seed + 1))).clamp(-1, 1)


def blur(schedule=None):
    return Blur(schedule or Cosine(T=T), SHAPE, kernel=7, first=1.0, growth=0.05, padding="circular", mean_at_end=True)


def coarse(corruption=None, seed=0, steps=T, **settings):
    """Fitted on 500 images in uneven batches."""
    schedule = Cosine(T=steps)
    init = CoarseMixture(corruption or blur(), schedule, SHAPE, **settings)
    init.fit_gaussian(images(500, seed).split(64))
    return init


def improved(corruption, schedule, x, state, restore):
    """Algorithm 2."""

    def degrade(clean, s):
        return corruption.at(clean, schedule.at(torch.full((len(x),), s - 1)), state) if s else clean

    for s in range(schedule.T, 0, -1):
        guess = restore(x, s)
        x = x - degrade(guess, s) + degrade(guess, s - 1)
    return x


def test_the_fit_is_a_mixture_of_one_component():
    init = coarse()
    means = images(500).mean((2, 3)).double()
    expected = GaussianMixture(1, covariance_type="full", reg_covar=0).fit(means.numpy())
    assert torch.allclose(init.means[0], torch.from_numpy(expected.means_[0]), atol=1e-6)
    covariance = init.roots[0] @ init.roots[0].T
    assert torch.allclose(covariance, torch.from_numpy(expected.covariances_[0]), atol=1e-6)
    assert covariance[0, 1] > 0.03
    assert covariance[0, 2] < -0.02


def test_draws_have_the_moments_of_the_training_images():
    init = coarse()
    v = init.draw(100_000, BatchGenerator([1]))[0][:, :, 0, 0].double()
    assert torch.allclose(v.mean(0), init.means[0], atol=3e-3)
    assert torch.allclose(v.T.cov(), init.roots[0] @ init.roots[0].T, atol=2e-3)


def test_the_start_of_a_blur_is_flat_but_for_its_noise():
    flat, state = coarse().draw(64, BatchGenerator([1]))
    assert type(state) is State
    assert torch.equal(flat, flat[:, :, :1, :1].expand_as(flat))
    noisy, _ = coarse(noise=0.002).draw(64, BatchGenerator([1]))
    assert (noisy - flat).std().item() == pytest.approx(0.002, rel=0.05)
    assert (noisy - flat).mean().abs().item() < 1e-4


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_perfect_symmetry_stays_and_broken_symmetry_grows(noise):
    """R commutes with translations; without noise nothing in the image can differ from the rest.

    In double precision: each step enlarges the rounding, which differs from processor to processor.
    """
    init, schedule = coarse(noise=noise), Cosine(T=T)
    table = init.corruption.blurred.table
    table.rows = table.rows.double()
    table.copies.clear()
    weight = 0.5 * torch.randn(3, 3, 3, 3, generator=generator(5)).double()
    restore = lambda x, s: torch.tanh(4 * F.conv2d(F.pad(x, [1] * 4, mode="circular"), weight) + 0.1 * s)  # noqa: E731
    x_T, state = init.draw(4, BatchGenerator([1]))
    x_0 = improved(init.corruption, schedule, x_T.double(), state, restore)
    spread = x_0.amax((2, 3)) - x_0.amin((2, 3))
    assert spread.max() < 1e-12 if noise == 0 else spread.min() > 0.004


def test_noise_of_the_start_stays_in_the_image():
    """With a perfect R all that was added to x_T outside of D is there at the end; it is not taken away."""
    schedule, x0 = Cosine(T=T), images(4)
    corruption = blur(schedule)
    x_T = corruption.at(x0, schedule.at(torch.full((4,), T - 1)), State())
    noise = 0.002 * torch.randn(x_T.shape, generator=generator(3))
    end = improved(corruption, schedule, x_T + noise, State(), lambda x, s: x0)
    assert torch.allclose(end - x0, noise, atol=1e-5)


@pytest.mark.parametrize(("steps", "side"), [(2, 4), (3, 2)])
def test_the_start_of_a_pixelation_has_its_blocks(steps, side):
    corruption = Pixelate(Cosine(T=steps), SHAPE)
    init, x0 = coarse(corruption, steps=steps, side=side), images(500)
    x_T = corruption.at(x0, Cosine(T=steps).at(torch.full((500,), steps - 1)), State())
    v = x_T[:, :, :: 16 // side, :: 16 // side].flatten(1).double()  # (500, 3 side^2)
    assert torch.allclose(init.means[0], v.mean(0), atol=1e-6)
    assert torch.allclose(init.roots[0] @ init.roots[0].T, v.T.cov(correction=0), atol=1e-6)
    drawn, _ = init.draw(8, BatchGenerator([1]))
    blocks = F.interpolate(drawn[:, :, :: 16 // side, :: 16 // side], size=16, mode="nearest-exact")
    assert torch.equal(drawn, blocks)
    assert torch.allclose(drawn.double(), expected_blocks(init, 8), atol=1e-6)


def expected_blocks(init, count):
    """The blocks in place, number by number."""
    z = BatchGenerator([1]).normal((count, len(init.means[0]))).double()
    v = (init.means[0] + z @ init.roots[0].T).reshape(count, 3, init.side, init.side)
    return F.interpolate(v, size=16, mode="nearest-exact")


def test_grey_images_give_grey_starts():
    init = CoarseMixture(blur(), Cosine(T=T), SHAPE)
    grey = images(200)[:, :1].expand(200, *SHAPE)
    init.fit_gaussian([grey])
    drawn = init.draw(50, BatchGenerator([1]))[0]
    assert torch.allclose(drawn[:, 0], drawn[:, 2], atol=1e-5)
    assert drawn.std() > 0.1


def test_a_fit_is_kept_as_tensors(tmp_path):
    init = coarse()
    save_tensors(tmp_path / "start.safetensors", init.state_dict(), {})
    again = CoarseMixture(blur(), Cosine(T=T), SHAPE)
    with pytest.raises(ConfigError, match="not fitted"):
        again.draw(2, BatchGenerator([1]))
    again.load_state_dict(load_tensors(tmp_path / "start.safetensors"))
    assert torch.equal(again.draw(5, BatchGenerator([1]))[0], init.draw(5, BatchGenerator([1]))[0])


def test_a_start_that_cannot_be_is_refused():
    schedule = Cosine(T=T)
    with pytest.raises(ConfigError, match="side=3 must divide 16"):
        CoarseMixture(blur(), schedule, SHAPE, side=3)
    with pytest.raises(ConfigError, match="'Mask' is random"):
        CoarseMixture(Mask(schedule, SHAPE, first=1.0, step=0.1), schedule, SHAPE)
    with pytest.raises(ConfigError, match="'Blur' mixes an image with nothing"):
        MixedSignal(blur(), SHAPE).draw(2, BatchGenerator([1]))


def test_initial_states_are_noise_colours_and_images():
    schedule, blend = Cosine(T=T), Blend()
    blend.set_images(torch.randint(256, (3, *SHAPE), dtype=torch.uint8, generator=generator(1)))
    noise, flat, image = (
        MixedSignal(c, SHAPE).draw(500, BatchGenerator([1]))[0]
        for c in (Gaussian(), ColourMask(schedule, SHAPE, first=1.0, step=0.5), blend)
    )
    assert noise.mean().abs() < 0.01
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(flat, flat[:, :, :1, :1].expand_as(flat))
    assert 0.45 < flat.max() <= 0.5
    assert len(image.flatten(1).unique(dim=0)) == 3
    shown = {tuple(((i + 1) * 127.5).round().byte().flatten().tolist()) for i in image}
    assert shown == {tuple(p.flatten().tolist()) for p in blend.pool}


def test_the_colour_of_the_start_is_the_one_that_is_taken_away():
    """x_T is c, whatever the image; the same c on the way down gives a perfect R's image."""
    schedule = Cosine(T=T)
    corruption = ColourMask(schedule, SHAPE, first=1.0, step=0.5)
    x_T, state = MixedSignal(corruption, SHAPE).draw(4, BatchGenerator([1]))
    x0 = images(4)
    assert torch.equal(corruption.at(x0, schedule.at(torch.full((4,), T - 1)), state), x_T)
    assert torch.allclose(improved(corruption, schedule, x_T, state, lambda x, s: x0), x0, atol=1e-5)


def test_fixed_noise_from_pure_noise_leaves_what_it_did_not_have_of_the_image():
    """-gamma_T x0 + (1 - sigma_T) z is left of a perfect R's image, 2.5e-4 at T = 200."""
    schedule, corruption = Cosine(T=200), Gaussian()
    z, state = MixedSignal(corruption, SHAPE).draw(4, BatchGenerator([1]))
    x0 = images(4)
    left = improved(corruption, schedule, z, state, lambda x, s: x0) - x0
    gamma, sigma = float(schedule.gamma[-1]), float(schedule.sigma[-1])
    assert gamma == pytest.approx(2.5e-4, rel=0.02)
    assert torch.allclose(left, -gamma * x0 + (1 - sigma) * z, atol=1e-5)
    exact = corruption.at(x0, schedule.at(torch.full((4,), 199)), state)
    assert torch.allclose(improved(corruption, schedule, exact, state, lambda x, s: x0), x0, atol=1e-5)


def test_a_disturbed_second_image_is_not_part_of_the_state():
    x_T, state = MixedSignal(Gaussian(), SHAPE, noise=0.1).draw(64, BatchGenerator([1]))
    assert (x_T - state.eps).std().item() == pytest.approx(0.1, rel=0.05)


def test_the_start_is_drawn_from_every_component_by_its_weight():
    init = CoarseMixture(blur(), Cosine(T=T), SHAPE, components=None)
    means = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.0, -0.5]])
    covariances = torch.stack([0.01 * torch.eye(3), 0.02 * torch.eye(3) + 0.01])
    init.set_mixture(torch.tensor([0.25, 0.75]), means, covariances)
    v = init.draw(40_000, BatchGenerator([1]))[0][:, :, 0, 0]
    first = v[:, 0] < 0
    assert first.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(torch.stack([v[first].mean(0), v[~first].mean(0)]), means, atol=0.01)
    assert torch.allclose(torch.stack([v[first].T.cov(), v[~first].T.cov()]), covariances, atol=2e-3)


@pytest.mark.parametrize(
    "corruption", [Gaussian(), ColourMask(Cosine(T=T), SHAPE, first=1.0, step=0.5)], ids=["noise", "colour"]
)
def test_a_styled_signal_has_the_moments_of_its_style(corruption):
    style = 0.3 * torch.randn(SHAPE, generator=generator(3)) + torch.tensor([0.5, -0.2, 0.1])[:, None, None]
    signals = {}
    for strength in (0.0, 0.5, 1.0):
        init = StyledSignal(corruption, SHAPE, "picture.png", strength)
        init.set_style(style)
        signals[strength], state = init.draw(8, BatchGenerator(list(range(8))))
        assert torch.equal(state.eps, signals[strength])
    plain, _ = MixedSignal(corruption, SHAPE).draw(8, BatchGenerator(list(range(8))))
    assert torch.equal(signals[0.0], plain)
    assert torch.allclose(signals[0.5], (plain + signals[1.0]) / 2, atol=1e-6)
    assert torch.allclose(signals[1.0].mean((2, 3)), style.mean((1, 2)).expand(8, 3), atol=1e-4)
    std = signals[1.0].std((2, 3))
    if isinstance(corruption, Gaussian):
        assert torch.allclose(std, style.std((1, 2)).expand(8, 3), rtol=1e-4)
        assert torch.corrcoef(torch.stack([plain[0, 0].flatten(), signals[1.0][0, 0].flatten()]))[0, 1] > 0.9999
    else:
        assert std.max() < 1e-6  # a flat colour stays flat


def test_a_style_that_was_not_read_is_an_error():
    with pytest.raises(ConfigError, match=r"style='picture.png' is not read"):
        StyledSignal(Gaussian(), SHAPE, "picture.png").draw(1, BatchGenerator([0]))

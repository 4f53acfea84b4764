"""Generators and restorations: laws for any network, and the results of a perfect one."""

from __future__ import annotations

import pytest
import torch

from ldae.config.build import Parts
from ldae.core.errors import ConfigError, NonFiniteError
from ldae.core.types import Batch, Cond
from ldae.diffusion.editing import slerp
from ldae.diffusion.samplers import DDIM, Direct, FixedLargeVariance, ImprovedColdSampling
from ldae.diffusion.spacing import Trailing
from ldae.diffusion.trajectory import build_trajectory
from ldae.sampling.generate import Generator, SamplerConfig, default_sampler
from ldae.sampling.restore import Edit, Enlarge, Guide, Interpolate, Invert, Segment, Undo

SMALL = ("data=digits", "denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[]", "augment=centre")


def objective_of(config, *argv):
    """A small system with a network that is not zero."""
    torch.manual_seed(0)
    objective = Parts(config("pretrain", *argv)).objective
    generator = torch.Generator().manual_seed(1)
    for parameter in objective.network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return objective.requires_grad_(False).eval()


def batch_of(size=8, count=6, masks=False):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(count, 3, size, size, generator=generator)
    figures = (torch.rand(count, 1, size, size, generator=generator) > 0.5).float() if masks else None
    return Batch(images, torch.arange(count) % 10, torch.arange(count), None, figures)


def generator_of(objective, rule=None, steps=10, **sampler):
    visited = build_trajectory(objective.schedule, Trailing(min(steps, objective.T)).steps(objective.T))
    return Generator(objective, SamplerConfig(rule or default_sampler(objective), visited, **sampler), seed=3)


def perfect(objective, truth):
    """Replace the network by one that returns the clean latent, or the noise that belongs to it."""

    def answer(x_t, level, cond=None):
        noise = (x_t - level.gamma.reshape(-1, 1, 1, 1) * truth) / level.sigma.clamp(min=1e-9).reshape(-1, 1, 1, 1)
        return truth if type(objective.target).__name__ == "X0" else noise

    objective.denoiser.forward = answer


def test_an_image_depends_on_seed_and_number_alone(config):
    generator = generator_of(
        objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL), FixedLargeVariance(), clip=True
    )
    whole = generator.from_noise([0, 1, 2, 3])
    parts = torch.cat([generator.from_noise([0]), generator.from_noise([1, 2]), generator.from_noise([3])])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert (whole[0] - whole[1]).abs().mean() > 0.01
    other = Generator(generator.objective, generator.sampler, seed=4).from_noise([0])
    assert (other - whole[:1]).abs().mean() > 0.01


def test_latents_of_l_dae_are_sampled_by_the_same_loop(config):
    """Its output is an image; the sampler gets that image's latent."""
    objective = objective_of(config, "experiment=ldae/digits", "denoiser=vit_64x4")
    batch = batch_of()
    objective.tokenizer.fit([2 * batch.images - 1])
    z0 = objective.tokenizer.encode(2 * batch.images - 1)
    objective.denoiser.forward = lambda *_: objective.tokenizer.decode(z0)
    generator = generator_of(objective, DDIM())
    level = objective.schedule.at(torch.full((6,), 500))
    assert torch.allclose(objective.predict(torch.randn(z0.shape), level).x0, z0, atol=1e-4)
    made = generator.from_noise(range(6))
    assert torch.allclose(made, generator.to_image(z0), atol=1e-4)


def test_guidance_of_one_changes_nothing_and_needs_classes(config):
    argv = ("experiment=ddpm/cifar10_cpu", *SMALL)
    labelled = objective_of(config, *argv, "task=labelled")
    plain, guided = (generator_of(labelled, DDIM(), guidance=s) for s in (1.0, 3.0))
    cond = Cond(label=torch.tensor([1, 2]))
    assert (plain.from_noise([0, 1], cond) - guided.from_noise([0, 1], cond)).abs().max() > 1e-4
    with pytest.raises(ConfigError, match=r"guidance=3[.]0 needs a class-conditional network"):
        generator_of(objective_of(config, *argv), guidance=3.0)


def test_latents_are_not_clipped(config):
    with pytest.raises(ConfigError, match="clip=true would cut the latents of PatchPCA"):
        generator_of(objective_of(config, "experiment=ldae/digits", "denoiser=vit_64x4"), clip=True)


@pytest.mark.parametrize("corruption", ["blur", "mask", "pixelate", "snow", "colour", "blend"])
def test_a_perfect_network_undoes_every_degradation(config, corruption):
    experiment = {"pixelate": "cold_sr", "colour": "cold_color"}.get(corruption, f"cold_{corruption}")
    argv = [w for w in SMALL if not w.startswith("data")]
    objective = objective_of(config, f"experiment={experiment}/cifar10_cpu", *argv)
    batch = batch_of(32)
    if corruption == "blend":
        objective.corruption.set_images((255 * batch_of(32, 9).images).byte())
    perfect(objective, 2 * batch.images - 1)
    assert isinstance(default_sampler(objective), ImprovedColdSampling)
    columns = Undo(generator_of(objective, steps=objective.T))(batch)
    assert list(columns) == ["input", "degraded", "direct", "sampled"]
    assert (columns["degraded"] - batch.images).abs().mean() > 0.05
    assert torch.allclose(columns["direct"], batch.images, atol=1e-5)
    assert torch.allclose(columns["sampled"], batch.images, atol=2 / 255)  # the rounding to 8 bits stays (algorithm 2)


def test_enlarging_is_told_the_small_image_and_measured_by_it(config):
    argv = [w for w in SMALL if not w.startswith("data")]
    objective = objective_of(config, "experiment=sr3/cifar10_cpu", *argv)
    batch = batch_of(32, 3)
    perfect(objective, 2 * batch.images - 1)
    enlarge = Enlarge(generator_of(objective))
    columns = enlarge(batch)
    figures = enlarge.figures(columns)
    assert torch.allclose(columns["sampled"], batch.images, atol=1e-3)
    assert figures["sampled"]["consistency"] < 0.1 < figures["bicubic"]["consistency"]
    assert figures["sampled"]["psnr"] > 50 > figures["bicubic"]["psnr"]


def test_the_regression_is_one_call_that_sees_no_noise(config):
    argv = [w for w in SMALL if not w.startswith("data")]
    objective = objective_of(config, "experiment=sr3/cifar10_regression_cpu", *argv)
    assert isinstance(default_sampler(objective), Direct)
    seen, forward = [], objective.denoiser.forward
    objective.denoiser.forward = lambda x, *rest: seen.append(x) or forward(x, *rest)
    Enlarge(generator_of(objective))(batch_of(32, 2))
    assert len(seen) == 1
    assert not seen[0].any()


def test_the_vote_of_perfect_runs_is_the_mask(config):
    argv = ("data.size=16", "denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[]")
    objective = objective_of(config, "experiment=segdiff/horses_cpu", *argv)
    batch = batch_of(16, 3, masks=True)
    perfect(objective, 2 * batch.masks - 1)
    segment = Segment(generator_of(objective, steps=100), runs=3)
    columns = segment(batch)
    assert torch.allclose(columns["mean of runs"], batch.masks, atol=1e-3)
    assert torch.equal(columns["vote"], batch.masks)
    assert segment.figures(columns)["vote"] == {"IoU": 1, "Dice": 1, "boundary F": 1}


def test_an_image_is_encoded_once_for_all_runs_and_steps(config):
    argv = ("data.size=16", "denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[]")
    objective = objective_of(config, "experiment=segdiff/horses_cpu", *argv)
    calls = []
    objective.denoiser.encoder.register_forward_hook(lambda *_: calls.append(1))
    Segment(generator_of(objective), runs=3)(batch_of(16, 2, masks=True))
    assert len(calls) == 1


def test_an_edit_from_t0_of_0_is_the_guide_and_what_is_kept_stays(config):
    objective = objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL)
    batch = batch_of()
    keep = torch.zeros(6, 1, 8, 8)
    keep[..., :4] = 1
    for kept in (None, keep):
        edit = Edit(generator_of(objective, clip=True), lambda b, k=kept: Guide(1 - b.images, k), [0.0, 0.5])
        columns = edit(batch)
        guide = 1 - batch.images if kept is None else torch.where(kept.bool(), batch.images, 1 - batch.images)
        assert torch.allclose(columns["t0=0"], guide, atol=1e-6)
        assert (columns["t0=0.5"] - columns["guide"])[..., 4:].abs().mean() > 0.02
    assert torch.allclose(columns["t0=0.5"][..., :4], columns["guide"][..., :4], atol=1e-6)


def test_a_perfect_network_finds_the_noise_of_an_image_and_the_image_again(config):
    objective = objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL)
    batch = batch_of()
    perfect(objective, 2 * batch.images - 1)
    columns = Invert(generator_of(objective, DDIM(), steps=50))(batch)
    assert torch.allclose(columns["again"], batch.images, atol=1e-3)


def test_between_two_pictures_lies_the_arc_between_their_noises(config):
    """A network that predicts no noise only scales its latent, and the arc scales along; the last goes to the first."""
    objective = objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL)
    objective.denoiser.forward = lambda x_t, level, cond=None: torch.zeros_like(x_t)
    batch = batch_of()
    columns = Interpolate(generator_of(objective, steps=50))(batch)
    z, other = 2 * batch.images - 1, 2 * batch.images.roll(-1, 0) - 1
    for share in (0.2, 0.8):
        arc = (slerp(z, other, share) + 1) / 2
        assert torch.allclose(columns[f"{share:g}"], arc.clamp(0, 1), atol=1e-5)
    assert torch.equal(columns["second"][-1], batch.images[0])


def test_a_latent_that_is_not_finite_is_no_image(config):
    generator = generator_of(objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL))
    with pytest.raises(NonFiniteError, match="what was sampled is not finite: use precision=fp32"):
        generator.to_image(torch.full((1, 3, 8, 8), torch.nan))


@pytest.mark.parametrize("experiment", ["ddpm/cifar10_cpu", "ldae/digits"])
@pytest.mark.parametrize("t0", [0.0, 0.4, 1.0])
def test_kept_pixels_are_those_of_the_original_to_the_bit(config, experiment, t0):
    """In pixels as in latents, which no tokenizer decodes to the bit."""
    small = SMALL if experiment.startswith("ddpm") else ("denoiser=vit_64x4", "augment=centre")
    objective, batch = objective_of(config, f"experiment={experiment}", *small), batch_of()
    if experiment.startswith("ldae"):
        objective.tokenizer.fit([2 * batch.images - 1])
    keep = (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    keep[0], keep[1] = 1, 0
    guide = 1 - batch.images
    edit = Edit(generator_of(objective), lambda _: Guide(guide, keep), [t0], repeats=2)
    columns = edit(batch)
    kept = keep.bool().expand(-1, 3, -1, -1)
    for name in ("guide", f"t0={t0:g}"):
        assert torch.equal(columns[name][kept], batch.images[kept])
    assert torch.equal(columns["guide"][~kept], guide[~kept])
    edited = columns[f"t0={t0:g}"]
    assert torch.equal(edited[0], batch.images[0])
    if t0 and experiment.startswith("ddpm"):
        whole = Edit(edit.generator, lambda _: Guide(guide, None), [t0], repeats=2)(batch)[f"t0={t0:g}"]
        assert torch.allclose(edited[1], whole[1], atol=1e-5)  # nothing is kept of it


def test_l2_is_the_mean_distance_of_an_image_to_its_guide(config):
    objective, batch = objective_of(config, "experiment=ddpm/cifar10_cpu", *SMALL), batch_of()
    edit = Edit(generator_of(objective), lambda b: Guide(b.images), [0.0])
    columns = dict(edit(batch))
    columns["t0=0"] = columns["guide"] + torch.arange(6).reshape(6, 1, 1, 1) / 10
    assert edit.figures(columns)["t0=0"]["l2"] == pytest.approx(sum(range(6)) / 60 * (3 * 8 * 8) ** 0.5, rel=1e-6)


def test_masks_of_several_classes_are_sampled_voted_and_measured(config):
    """By a perfect network: the vote is the truth, without uncertainty."""
    small = ("denoiser.channels=8", "denoiser.multipliers=[1,2]", "denoiser.attention=[]", "denoiser.encoder=null")
    objective = objective_of(config, "experiment=segdiff/classes_cpu", "data.root=x", "data.size=16", *small)
    index = torch.randint(0, 3, (4, 16, 16), generator=torch.Generator().manual_seed(0))
    masks = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).float()
    batch = Batch(torch.rand(4, 3, 16, 16), torch.zeros(4).long(), torch.arange(4), None, masks)
    perfect(objective, 2 * masks - 1)
    segment = Segment(generator_of(objective), runs=2)
    columns = segment(batch)
    assert list(columns) == ["image", "truth", "mean of runs", "uncertainty", "vote"]
    assert torch.equal(columns["vote"], masks)
    assert columns["uncertainty"].max() < 0.02
    assert segment.figures(columns)["vote"] == {"mIoU": 1, "accuracy": 1, "IoU 0": 1, "IoU 1": 1, "IoU 2": 1}
    spoiled = {**columns, "vote": masks.roll(1, 1)}
    assert segment.figures(spoiled)["vote"]["mIoU"] == 0

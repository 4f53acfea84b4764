"""Tasks: clean inputs and conditions from a batch (arXiv 2104.07636, 2112.00390)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ldae.config.build import Parts
from ldae.config.choices import choices_of
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond
from ldae.metrics.image_quality import consistency
from ldae.tasks.images import Images
from ldae.tasks.segmentation import Segmentation
from ldae.tasks.super_resolution import SuperResolution, blur, downsample, upsample

TASKS = list(choices_of("task"))


@pytest.fixture(scope="module")
def photographs():
    """64 crops of two photographs, (64, 3, 32, 32) in [0, 1]."""
    generator, crops = np.random.default_rng(0), []
    for picture in load_sample_images().images:
        for _ in range(32):
            y, x = generator.integers(0, 427 - 32), generator.integers(0, 640 - 32)
            crops.append(picture[y : y + 32, x : x + 32])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def batch_of(images):
    """Those images with labels, and masks that are 1 where they are bright."""
    masks = (images.mean(1, keepdim=True) > images.mean()).float()
    return Batch(images, torch.arange(len(images)) % 10, torch.arange(len(images)), masks=masks)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_what_it_promises(config, photographs, name):
    parts, batch = (
        Parts(config("pretrain", f"task={name}", "data.size=32", "tokenizer=identity")),
        batch_of(photographs),
    )
    task = parts.task
    for x0, cond in (task(batch), task.from_images(batch.images)):
        assert x0.shape == (64, task.channels, 32, 32)
        assert x0.abs().max() <= 1
        assert (0 if cond.image is None else cond.image.shape[1]) == task.image_channels
        assert cond.image is None or cond.image.abs().max() <= 1
    assert task.x0_is_image == torch.equal(task(batch)[0], 2 * batch.images - 1)
    augmented = task.augment_cond(task(batch)[1], BatchGenerator([0]))
    assert (augmented.label is None) == (task.classes == 0)
    assert parts.tokenizer.image_shape == (task.channels, 32, 32)


def test_images_alone_are_read_as_they_are(photographs):
    x0, cond = Images().from_images(photographs)
    assert torch.equal(x0, 2 * photographs - 1)
    assert cond == Cond()


# super-resolution


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_small_image_is_pillows(photographs, factor):
    small = downsample(photographs, factor)
    assert small.shape == (64, 3, 32 // factor, 32 // factor)
    for image, reduced in zip(photographs[:8, 0].numpy(), small[:8, 0], strict=True):
        theirs = Image.fromarray(image).resize((32 // factor,) * 2, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(theirs).clip(0, 1) - reduced.numpy()).max() < 1e-5
        large = Image.fromarray(reduced.numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(large) - upsample(reduced[None, None], 32)[0, 0].numpy()).max() < 1e-5


def test_flipped_images_have_flipped_small_ones(photographs):
    """Made small after the flip, it is the flip of the small one."""
    task, flipped = SuperResolution(4, 32), batch_of(photographs.flip(3))
    x0, cond = task(flipped)
    other, other_cond = task(batch_of(photographs))
    assert torch.equal(x0, other.flip(3))
    torch.testing.assert_close(cond.image, other_cond.image.flip(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(cond.image, 2 * downsample(flipped.images, 4) - 1)


def test_bicubic_is_less_consistent_than_the_truth(photographs):
    """The error of the image that is reduced again; 0 for the truth."""
    low = downsample(photographs, 4)
    assert consistency(low, downsample(photographs, 4)) == 0
    assert consistency(low, downsample(upsample(low, 32).clamp(0, 1), 4)) > 1
    assert consistency(low, downsample(photographs.roll(1, 0), 4)) > 1000


def test_bicubic_is_nearer_the_truth_than_nearest_neighbours(photographs):
    low = downsample(photographs, 4)
    nearest = low.repeat_interleave(4, 2).repeat_interleave(4, 3)
    error = lambda x: ((x - photographs) ** 2).mean()  # noqa: E731
    assert error(upsample(low, 32).clamp(0, 1)) < 0.95 * error(nearest)


def _reference_blur(image, sigma):
    """One image (C, H, W), its 3 x 3 weights written out (cascades: Sec. 4.5, arXiv 2104.07636)."""
    kernel = torch.tensor([[math.exp(-(i * i + j * j) / (2 * sigma**2)) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    kernel = (kernel / kernel.sum()).expand(len(image), 1, 3, 3)
    padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel, groups=len(image))[0]


def test_blur_is_a_gaussian_for_each_image(photographs):
    sigma = torch.linspace(0.2, 2.0, 64)
    blurred = blur(photographs, sigma)
    for i in (0, 20, 40, 63):
        torch.testing.assert_close(blurred[i], _reference_blur(photographs[i], float(sigma[i])), rtol=0, atol=1e-6)
    assert torch.equal(blur(photographs, torch.zeros(64)), photographs)
    grey = torch.full((2, 3, 8, 8), 0.3)
    torch.testing.assert_close(blur(grey, torch.tensor([0.5, 5.0])), grey)


def test_blur_is_drawn_between_its_bounds_for_each_image(photographs):
    task = SuperResolution(4, 32, blur_low=0.4, blur_high=0.6)
    cond = task(batch_of(photographs))[1]
    blurred = task.augment_cond(cond, BatchGenerator([5, 6]))
    sigma = 0.4 + 0.2 * BatchGenerator([5, 6]).uniform((64,))
    assert torch.equal(blurred.image, blur(cond.image, sigma))
    assert sigma.unique().numel() > 60
    halves = [
        task.augment_cond(Cond(image=part), BatchGenerator([seed])).image
        for part, seed in zip(cond.image.chunk(2), (5, 6), strict=True)
    ]
    assert torch.equal(torch.cat(halves), blurred.image)


def test_without_blur_nothing_is_drawn(photographs):
    rng, cond = BatchGenerator([3]), SuperResolution(4, 32)(batch_of(photographs))[1]
    assert SuperResolution(4, 32).augment_cond(cond, rng) is cond
    assert torch.equal(rng.normal((2,)), BatchGenerator([3]).normal((2,)))


def test_blur_is_for_training_alone(config):
    """Large images are never blurred."""
    torch.manual_seed(0)
    argv = ("task=super_resolution", "task.blur_low=0.5", "task.blur_high=1", "tokenizer=identity", "loss=l2")
    parts = Parts(config("pretrain", *argv))
    objective, calls = parts.objective, []
    parts.denoiser.register_forward_pre_hook(lambda _, given: calls.append(given))
    batch = batch_of(torch.rand(16, 3, 8, 8))
    for mode in (True, False):
        objective.train(mode)(batch, BatchGenerator([7]))
    (shown, _, augment_cond), (again, _, in_evaluation) = calls
    low = 2 * downsample(batch.images, 4) - 1
    assert torch.equal(in_evaluation.image, low)
    assert (augment_cond.image - low).flatten(1).abs().amax(1).min() > 1e-3
    assert torch.equal(shown, again)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("task.factor=3",), r"task\.factor=3 does not divide the image, 8 pixels \(data\.size\)"),
        (("task.blur_low=0.5",), r"task\.blur_low=0\.5 exceeds blur_high=0"),
    ],
)
def test_impossible_super_resolution_is_refused_before_data_is_read(config, argv, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _ = Parts(config("pretrain", "task=super_resolution", *argv)).objective


# segmentation


def test_masks_are_minus_one_and_one_and_the_image_is_given(photographs):
    batch = batch_of(photographs)
    x0, cond = Segmentation()(batch)
    assert torch.equal(x0.unique(), torch.tensor([-1.0, 1.0]))
    assert torch.equal(x0 > 0, batch.masks == 1)
    assert torch.equal(cond.image, 2 * photographs - 1)


def test_of_images_alone_no_mask_is_known(photographs):
    x0, cond = Segmentation().from_images(photographs)
    assert x0.shape == (64, 1, 32, 32)
    assert not x0.any()
    assert torch.equal(cond.image, Segmentation()(batch_of(photographs))[1].image)


def test_a_set_without_masks_is_named(photographs):
    with pytest.raises(ConfigError, match="task='Segmentation' needs images with masks; use data=horses"):
        Segmentation()(Batch(photographs, torch.zeros(64).long(), torch.arange(64)))


def test_a_segmentation_has_one_channel_to_noise(config, photographs):
    batch = batch_of(downsample(photographs, 4))
    for tokenizer, shape in (("identity", (1, 8, 8)), ("pixel", (4, 4, 4))):
        argv = ("task=segmentation", f"tokenizer={tokenizer}", "loss=l2")
        parts = Parts(config("pretrain", *argv))
        x0, _ = parts.task(batch)
        parts.tokenizer.fit([x0])
        assert parts.tokenizer.shape == shape
        torch.testing.assert_close(parts.tokenizer.decode(parts.tokenizer.encode(x0)), x0)
        loss, _ = parts.objective(batch, BatchGenerator([0]))
        assert torch.isfinite(loss)
    with pytest.raises(ConfigError, match=r"tokenizer\.part='ConvVAE' is for 3 channels, the task has 1"):
        _ = Parts(config("pretrain", "task=segmentation", "tokenizer=conv_vae", "data.size=32")).tokenizer

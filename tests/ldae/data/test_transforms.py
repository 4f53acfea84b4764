"""Augmentations against torchvision's, and their statistics."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as TF

from ldae.core.rng import uniforms
from ldae.data.transforms import Centre, Flip, PadCrop, RandomResizedCrop, batched_resized_crop


@pytest.fixture(scope="module")
def images():
    return torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def numbers(augment, count=64):
    return uniforms(0, 0, torch.arange(count), augment.n)


def test_centre_changes_nothing(images):
    assert torch.equal(Centre()(images, numbers(Centre())), images)


def test_half_of_the_images_are_mirrored(images):
    augment = Flip()
    u = uniforms(0, 0, torch.arange(20_000), 1)
    assert augment.flips(u).float().mean().item() == pytest.approx(0.5, abs=0.02)
    out, which = augment(images, u[:64]), augment.flips(u[:64])
    assert torch.equal(out[which], images[which].flip(3))
    assert torch.equal(out[~which], images[~which])


def test_pad_crop_shifts_by_each_amount_alike_and_brings_in_zeros(images):
    augment = PadCrop(pad=4, flip=0.0)
    u = numbers(augment)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    out = augment(images, u)
    for i in range(64):
        y, x = (u[i, 1:] * 9).long().tolist()
        assert torch.equal(out[i], padded[i, :, y : y + 32, x : x + 32])
    shifts = (uniforms(0, 0, torch.arange(90_000), 3)[:, 1] * 9).long()
    assert (torch.bincount(shifts, minlength=9) / 90_000 - 1 / 9).abs().max() < 0.005


def test_resized_crops_are_torchvisions(images):
    boxes = torch.tensor([[0, 0, 32, 32], [3, 5, 20, 14], [10, 0, 9, 32], [30, 30, 2, 2]]).repeat(16, 1).double()
    ours = batched_resized_crop(images, boxes)
    for i, box in enumerate(boxes.long().tolist()):
        cut = TF.crop(images[i], *box)
        theirs = TF.resize(cut, [32, 32], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        assert (ours[i] - theirs).abs().max() < 3e-6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 500)])
def test_random_boxes_have_the_configured_areas_and_shapes(height, width):
    augment = RandomResizedCrop(low=0.2, high=1.0)
    n = 20_000
    u = uniforms(0, 0, torch.arange(n), augment.n)
    boxes = augment.boxes(u, torch.full((n,), height), torch.full((n,), width))
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    theirs = [
        TorchvisionCrop.get_params(torch.empty(3, height, width), [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(5000)
    ]
    their_h, their_w = torch.tensor(theirs).double()[:, 2:].T
    for ours, reference in (
        (h * w / (height * width), their_h * their_w / (height * width)),
        (w / h, their_w / their_h),
    ):
        q = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        assert (ours.quantile(q) - reference.quantile(q)).abs().max() < 0.04


def test_a_box_that_never_fits_gives_way_to_the_centre():
    augment = RandomResizedCrop(low=1.0, high=1.0)
    u = torch.full((1, augment.n), 0.999)  # always the widest shape, never fits a tall image
    box = augment.boxes(u, torch.tensor([400]), torch.tensor([40]))
    assert box.tolist() == [[180.0, 0.0, 40.0, 40.0]]

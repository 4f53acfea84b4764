"""Heads against autograd and torch's optimisers, and against MAE's own schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from linear_probe.heads import HeadRecipe, HeadTrainer, train_heads


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _reference_factor(step, steps, warmup):
    """MAE's util/lr_sched.py, in steps: a line from 0 over the warm-up, then half a cosine."""
    warm = warmup * steps
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _reference_head(x, y, recipe, rate, seed):
    """One head trained by torch: nn.Linear, autograd, SGD with momentum or MAE's LARS, the same order and start."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.nn.init.trunc_normal_(torch.empty(x.shape[1], 1, 10), std=0.01, generator=generator)
    head = nn.Linear(x.shape[1], 10)
    with torch.no_grad():
        head.weight.copy_(start[:, 0].T)
        head.bias.zero_()
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6) if recipe.batch_norm else nn.Identity()
    speed = {p: torch.zeros_like(p) for p in head.parameters()}
    steps, order, place = round(recipe.epochs * len(x) / recipe.batch), torch.randperm(len(x), generator=generator), 0
    for step in range(steps):
        if place + recipe.batch > len(x):
            order, place = torch.randperm(len(x), generator=generator), 0
        rows, place = order[place : place + recipe.batch], place + recipe.batch
        head.zero_grad()
        nn.functional.cross_entropy(head(norm(x[rows])), y[rows]).backward()
        factor = _reference_factor(step, steps, recipe.warmup)
        with torch.no_grad():
            for p in head.parameters():
                g = p.grad
                if recipe.rule == "lars" and p.ndim > 1:
                    g = g * 0.001 * p.norm() / g.norm()
                speed[p] = 0.9 * speed[p] + g
                p -= rate * factor * speed[p]
    return head, norm.eval()


@pytest.mark.parametrize(
    "recipe",
    [
        HeadRecipe((0.01, 0.1, 1.0), batch=200, epochs=5),
        HeadRecipe((0.5, 5.0), batch=200, epochs=6, rule="lars", warmup=0.2, batch_norm=True),
    ],
)
def test_each_head_of_many_is_the_one_that_torch_would_train(digits, recipe):
    x, y, held, _ = digits
    many = train_heads(x, y, 10, recipe, seed=4)
    for i, rate in enumerate(recipe.rates):
        head, norm = _reference_head(x, y, recipe, rate, seed=4)
        assert torch.allclose(many.weight[:, i].T, head.weight, atol=1e-4)
        assert (many.predict(held)[i] == head(norm(held)).argmax(1)).float().mean() > 0.998
    assert not torch.allclose(many.weight[:, 0], many.weight[:, 1])


def test_adam_and_the_stairs_are_torchs(digits):
    """DDAE's loop: nn.Linear, Adam, CosineAnnealingLR stepped once an epoch, the last batch smaller."""
    x, y, _, _ = digits
    recipe = HeadRecipe((4e-3, 1e-3), batch=512, epochs=6, rule="adam", start="linear", whole=True, stairs=True)
    generator = torch.Generator().manual_seed(3)
    trainer = HeadTrainer(64, 10, recipe, len(x), generator)
    heads = [nn.Linear(64, 10) for _ in recipe.rates]
    for i, head in enumerate(heads):
        head.weight.data.copy_(trainer.weight[:, i].T)
        head.bias.data.copy_(trainer.bias[i])
    optims = [torch.optim.Adam(h.parameters(), lr=rate) for h, rate in zip(heads, recipe.rates, strict=True)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optim, 6) for optim in optims]
    sizes = []
    for step, rows in enumerate(trainer.orders(len(x), generator)):
        sizes.append(len(rows))
        trainer.step(x[rows], y[rows])
        for head, optim in zip(heads, optims, strict=True):
            optim.zero_grad()
            nn.functional.cross_entropy(head(x[rows]), y[rows]).backward()
            optim.step()
        if step % 3 == 2:
            [schedule.step() for schedule in schedules]
    assert sizes == [512, 512, 176] * 6
    for i, head in enumerate(heads):
        assert torch.allclose(trainer.weight[:, i].T, head.weight, atol=2e-5)
        assert torch.allclose(trainer.bias[i], head.bias, atol=2e-5)


def test_a_head_that_starts_as_torchs_linear_layer_is_spread_as_it_is():
    recipe = HeadRecipe((1.0,), batch=8, epochs=1, start="linear")
    ours = HeadTrainer(400, 100, recipe, 8, torch.Generator().manual_seed(0))
    theirs = nn.Linear(400, 100)
    for a, b in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert a.abs().max() <= 0.05
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)


def test_every_image_is_seen_once_in_an_epoch_and_the_rest_is_left_out():
    recipe = HeadRecipe((1.0,), batch=4, epochs=3)
    generator = torch.Generator().manual_seed(0)
    trainer = HeadTrainer(2, 2, recipe, 10, generator)
    rows = [r.tolist() for r in trainer.orders(10, generator)]
    assert [len(r) for r in rows] == [4] * 6
    epochs = [set(rows[i] + rows[i + 1]) for i in (0, 2, 4)]
    assert [len(e) for e in epochs] == [8] * 3
    assert rows[:2] != rows[2:4]


def test_the_first_step_of_a_warm_up_moves_nothing(digits):
    x, y, _, _ = digits
    recipe = HeadRecipe((6.4,), batch=600, epochs=10, rule="lars", warmup=0.5, batch_norm=True)
    trainer = HeadTrainer(64, 10, recipe, len(x), torch.Generator().manual_seed(0))
    before = trainer.weight.clone()
    trainer.step(x[:600], y[:600])
    assert torch.equal(before, trainer.weight)
    trainer.step(x[600:], y[600:])
    assert not torch.equal(before, trainer.weight)
    factors = [_reference_factor(step, 20, 0.5) for step in range(20)]
    assert factors[10] == max(factors) == 1
    assert np.argmax(factors) == 10

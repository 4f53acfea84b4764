"""Overfitting of one batch."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images

from ldae.config.build import Parts
from ldae.core.types import Batch, BatchGenerator


def test_one_batch_is_known_by_heart(config):
    """The mean absolute error of four images falls below 0.01 (of a range of 2)."""
    argv = ("experiment=cold_mask/cifar10_cpu", "denoiser.multipliers=[1,2]", "denoiser.attention=[]")
    argv += ("denoiser.dropout=0", "data.size=8", "schedule.T=3")
    torch.manual_seed(0)
    objective = Parts(config("pretrain", *argv)).objective
    picture = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1).float() / 255
    images = torch.stack([picture[:, 40 * i : 40 * i + 8, 60 * i : 60 * i + 8] for i in range(4)])
    batch = Batch(images, torch.zeros(4).long(), torch.arange(4))
    optimiser = torch.optim.Adam(objective.parameters(), lr=2e-3)
    steps, errors = 450, []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        loss, _ = objective(batch, BatchGenerator([step]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert sum(errors[:3]) / 3 > 0.1
    assert sum(errors[-50:]) / 50 < 0.01

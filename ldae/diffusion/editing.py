"""Uses of a sampler beyond generation: SDEdit, DDIM inversion, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldae.core.types import BatchGenerator, expand
from ldae.diffusion.samplers import StepCallback, StepRule, keep_region, sample
from ldae.diffusion.trajectory import Predict, SamplingStep


def edit(
    predict: Predict,
    rule: StepRule,
    guide: Tensor,
    trajectory: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    keep: Tensor | None = None,
    repeats: int = 1,
    clip: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Edit a guide by SDEdit: noise it to the first step and sample from there (Sec. 3, arXiv 2108.01073).

    Args:
        guide: (B, C, H, W), strokes or an image with a pasted object.
        trajectory: `full[nearest_step(full, t0, T):]` of a full trajectory.
        keep: (B, 1, H, W), 1 where the guide is kept, else 0; None: all of it may change.
        repeats: K; each starts from the previous result, with new noise.
        predict, rule, rng, clip, callback: as for `sample`.
    """
    x = guide
    for _ in range(repeats):
        eps = rng.normal(guide.shape)
        constrain = None if keep is None else keep_region(guide, eps, keep)
        x = sample(
            predict,
            rule,
            trajectory[0].mixed(x, eps),
            trajectory,
            rng,
            clip=clip,
            constrain=constrain,
            callback=callback,
        )
    return x


@torch.no_grad()
def invert(predict: Predict, x0: Tensor, trajectory: Sequence[SamplingStep]) -> Tensor:
    """Return the noise at trajectory[0] from which DDIM with eta = 0 generates x0 (Sec. 4.3, arXiv 2010.02502).

    A step follows the eps predicted at its lower level. From the clean image, a level that no network is trained at,
    it follows the eps predicted for x0 at the next level.

    Args:
        predict: as for `sample`.
        x0: (B, ...) clean.
        trajectory: as for `sample`, noisiest first; followed backwards.
    """
    x = x0
    for low, high in pairwise(trajectory[::-1]):
        x = _noise_by_ddim(predict, x, low, high)
    return x


def _noise_by_ddim(predict: Predict, x: Tensor, low: SamplingStep, high: SamplingStep) -> Tensor:
    if high.sigma == 0:
        return high.gamma / low.gamma * x
    at = low if low.sigma else high
    x0 = predict(x, at).x0
    eps = (x - at.gamma * x0) / at.sigma
    return high.mixed(x0 if low.sigma else x / low.gamma, eps)


def slerp(a: Tensor, b: Tensor, lam: float) -> Tensor:
    """Interpolate spherically: sin((1 - lam) theta) / sin(theta) a + sin(lam theta) / sin(theta) b.

    theta is the angle of each pair (Sec. 5.3, arXiv 2010.02502). Collinear pairs are interpolated linearly.

    Args:
        a, b: (B, ...).
        lam: in [0, 1]; 0 gives a, 1 gives b.
    """
    flat, other = a.flatten(1).double(), b.flatten(1).double()
    cosine = (flat * other).sum(1) / (flat.norm(dim=1) * other.norm(dim=1))
    theta = cosine.clamp(-1, 1).acos()  # (B,)
    sine = theta.sin()
    collinear = sine.abs() < 1e-6
    sine = torch.where(collinear, 1.0, sine)
    first = torch.where(collinear, 1 - lam, ((1 - lam) * theta).sin() / sine)
    second = torch.where(collinear, lam, (lam * theta).sin() / sine)
    return expand(first.to(a.dtype), a) * a + expand(second.to(b.dtype), b) * b

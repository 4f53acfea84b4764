"""What is done with a sampler beyond sampling: edits from a guide, inversion, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldae.core.types import BatchGenerator, expand
from ldae.diffusion.samplers import StepRule, Watch, keeping, sample
from ldae.diffusion.trajectory import Predict, SamplingStep


def edited(
    predict: Predict,
    rule: StepRule,
    guide: Tensor,
    stages: Sequence[SamplingStep],
    rng: BatchGenerator,
    *,
    keep: Tensor | None = None,
    repeats: int = 1,
    clip: bool = False,
    watch: Watch | None = None,
) -> Tensor:
    """SDEdit: the guide noised to the first stage, and the way back from there (Sec. 3, arXiv 2108.01073).

    Args:
        guide: (B, C, H, W), strokes or something pasted in.
        stages: where to start and how to come back; `all[nearest_stage(all, t0, T):]`.
        keep: 1 where the guide stays as it is, 0 or 1, (B, 1, H, W); None: all of it may change.
        repeats: K; each starts from the last one's result, with noise of its own.
        predict, rule, draws, clip, watch: as for `sample`.
    """
    x = guide
    for _ in range(repeats):
        eps = rng.normal(guide.shape)
        amend = None if keep is None else keeping(guide, eps, keep)
        x = sample(predict, rule, stages[0].mixed(x, eps), stages, rng, clip=clip, amend=amend, watch=watch)
    return x


@torch.no_grad()
def invert(predict: Predict, x0: Tensor, stages: Sequence[SamplingStep]) -> Tensor:
    """The noise at stages[0] that DDIM with eta = 0 makes x0 of: its steps upwards (Sec. 4.3, arXiv 2010.02502).

    A step goes from x at the lower level along the eps that the network sees there. At the clean stage, which no
    network was trained for, it is what the network sees in x0 at the next one.

    Args:
        x0: (B, ...) clean.
        stages: as for `sample`, noisiest first; walked backwards.
    """
    x, upwards = x0, stages[::-1]
    for low, high in pairwise(upwards):
        x = _upwards(predict, x, low, high)
    return x


def _upwards(predict: Predict, x: Tensor, low: SamplingStep, high: SamplingStep) -> Tensor:
    if high.sigma == 0:
        return high.gamma / low.gamma * x
    seen = low if low.sigma else high
    found = predict(x, seen).x0
    eps = (x - seen.gamma * found) / seen.sigma
    return high.mixed(found if low.sigma else x / low.gamma, eps)


def slerp(a: Tensor, b: Tensor, lam: float) -> Tensor:
    """sin((1 - lam) theta) / sin(theta) a + sin(lam theta) / sin(theta) b, theta the angle of each pair, (B, ...).

    Sec. 5.3 of arXiv 2010.02502. Pairs that lie on one line are mixed linearly.

    Args:
        lam: 0 gives a, 1 gives b.
    """
    flat, other = a.flatten(1).double(), b.flatten(1).double()
    cosine = (flat * other).sum(1) / (flat.norm(dim=1) * other.norm(dim=1))
    theta = cosine.clamp(-1, 1).acos()  # (B,)
    sine = theta.sin()
    lies = sine.abs() < 1e-6
    sine = torch.where(lies, 1.0, sine)
    first = torch.where(lies, 1 - lam, ((1 - lam) * theta).sin() / sine)
    second = torch.where(lies, lam, (lam * theta).sin() / sine)
    return expand(first.to(a.dtype), a) * a + expand(second.to(b.dtype), b) * b

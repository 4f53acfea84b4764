"""Inpainting of holes of any shape with a network of Cold Diffusion that was trained on masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldae.core.errors import DataError
from ldae.core.types import Batch, BatchGenerator
from ldae.diffusion.corruptions.mask import Mask
from ldae.diffusion.samplers import Degradation
from ldae.objectives.base import full_precision
from ldae.sampling.generate import Generator, StepCallback
from ldae.sampling.restore import Columns, Restoration

# (batch, generator of its random numbers) -> (B, n, n) bool, true where pixels are missing
Holes = Callable[[Batch, BatchGenerator], Tensor]


class Inpaint(Restoration):
    """Inpainting: input | masked | direct | sampled; known pixels are those of the input (Sec. 4.2, arXiv 2208.09392).

    The hole grows along the shape as the published one grows around its centre, to the step at which it covers the
    shape, where both restorations start.

    Args:
        generator: a denoiser that was trained with corruption=mask.
        holes: shapes of the holes of a batch.
    """

    truth, measured = "input", ("masked", "direct", "sampled")
    degrades = True

    def __init__(self, generator: Generator, holes: Holes):
        super().__init__(generator)
        corruption = generator.objective.corruption
        assert isinstance(corruption, Mask)
        self.corruption, self.holes = corruption, holes

    @property
    def passes(self) -> int:
        """Return the number of passes per batch: the direct restoration and the sampled one."""
        return 1 + self.generator.passes()

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        hole = self.holes(batch, rng)
        if not hole.flatten(1).any(1).all():
            raise DataError("a mask has no white pixels, so there is nothing to fill in; white pixels are missing")
        state = self.corruption.along(hole)
        missing = hole[:, None]  # (B, 1, n, n)
        with full_precision(batch.images):
            x0 = g.objective.tokenizer.encode(g.objective.task(batch)[0]).masked_fill(missing, 0)
            level = g.objective.schedule.at(state.last)
            z = self.corruption.corrupt(x0, level, state)
        direct = g.predict_at(z, level).x0
        rule = g.sampler.rule.bind(Degradation(self.corruption, state))
        sampled = g.sample(z, rng, rule=rule, callback=callback)
        filled = {"direct": g.to_image(direct), "sampled": g.to_image(sampled)}
        kept = {name: torch.where(missing, x, batch.images) for name, x in filled.items()}
        return {"input": batch.images, "masked": batch.images.masked_fill(missing, 0.5), **kept}

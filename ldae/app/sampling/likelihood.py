"""Bound the negative log-likelihood of images under a trained pixel diffusion model, in bits per dimension.

    ldae likelihood run=RUN
    ldae likelihood run=RUN sampler=learned split=test count=10000

Evaluates the variational bound over all steps with one noise sample for each (arXiv 2006.11239, Sec. 3; 2102.09672).
Prints it with its terms: the prior L_T, the steps L_1..L_T-1, and the discretized decoder L_0 at 256 intensity levels.
Writes OUT/likelihood.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.sampling.generator import generator_of, provenance_of
from ldae.app.session import result_folder, root_settings, session_of
from ldae.app.training.monitors import spread
from ldae.core.errors import ConfigError
from ldae.core.files import write_json
from ldae.core.progress import Progress
from ldae.core.types import Batch, Count
from ldae.data.loader import in_order
from ldae.diffusion.bound import Bound, nll_bound
from ldae.diffusion.samplers import Ancestral
from ldae.sampling.generate import Generator


@dataclass(frozen=True)
class LikelihoodSettings:
    """Configure the images whose likelihood is bounded.

    Attributes:
        split: split of the run's data.
        count: number of images, evenly spaced over the split.
        batch: images per forward pass.
    """

    split: Literal["holdout", "test"]
    count: Count
    batch: Count


def main(argv: Sequence[str]) -> None:
    """Run `ldae likelihood`."""
    config, precision = settle_precision(resolved(compose("likelihood", argv)))
    settings: LikelihoodSettings = root_settings(LikelihoodSettings, config)
    generator, run = generator_of(config)
    rule = generator.sampler.rule
    if not generator.objective.tokenizer.is_bounded:
        raise ConfigError("run", config["run"], "is of latents; a likelihood of images needs tokenizer=identity")
    if not isinstance(rule, Ancestral):
        raise ConfigError("sampler", type(rule).__name__, "has no variance; use ddpm, ddpm_large or learned")
    session = session_of(run, config)
    folder = result_folder(config, "likelihood")
    with session.running(folder):
        announce(precision)
        images = spread(getattr(session.splits(), settings.split), settings.count)
        batches = in_order(images, settings.batch, session.world.device, 0, session.stop.poll)
        passes = -(-len(images) // settings.batch) * (len(generator.sampler.trajectory) - 1)
        progress = Progress(session.progress, passes, title="bounding")
        generator.on_step = progress.advance
        bounds = [bound_of(generator, rule, batch) for batch in batches]
        progress.close()
        total = torch.cat([bound.total for bound in bounds])
        figures = {
            "bits/dim": float(total.mean()),
            **({"standard error": float(total.std() / len(total) ** 0.5)} if len(total) > 1 else {}),
            "prior": float(torch.cat([bound.prior for bound in bounds]).mean()),
            "steps": float(torch.cat([bound.steps[:-1].sum(0) for bound in bounds]).mean()),
            "last": float(torch.cat([bound.steps[-1] for bound in bounds]).mean()),
        }
        provenance = {**provenance_of(config, run), "split": settings.split, "images": len(images)}
        write_json(folder.path / "likelihood.json", {**provenance, "figures": figures})
        print(f"{len(images)} {settings.split} images: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        folder.set_status("done", len(images))


def bound_of(generator: Generator, rule: Ancestral, batch: Batch) -> Bound:
    """Return the bound of each image of a batch."""
    x0, cond = generator.objective.task(batch)
    message, rng = generator.precompute(cond), generator.rng(batch.index.tolist())
    predict = lambda x, step: generator.predict(x, step, message)  # noqa: E731
    return nll_bound(predict, rule, x0, generator.sampler.trajectory, rng, clip=generator.sampler.clip)

"""Bounds the negative log-likelihood of images under a trained diffusion model of pixels, in bits per dimension.

    python tools/likelihood.py run=RUN
    python tools/likelihood.py run=RUN sampler=learned split=test count=10000

The variational bound over all steps, one draw of the noise for each (arXiv 2006.11239, Sec. 3; 2102.09672). Prints
it with its parts: the prior L_T, the steps, and the last, of 256 levels. Writes OUT/likelihood.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from _cli import compose, resolved, run_tool
from _generators import described, generator_of
from _monitors import spread
from _precision import announce, settle_precision
from _session import own_settings, result_folder, session_of

from ldae.data.loader import in_order
from ldae.diffusion.bound import Bound, nll_bound
from ldae.diffusion.samplers import Ancestral
from ldae.errors import ConfigError
from ldae.files import write_json
from ldae.generate import Generator
from ldae.parts import Count
from ldae.progress import Progress
from ldae.types import Batch


@dataclass(frozen=True)
class LikelihoodSettings:
    """Whose likelihood is bounded.

    Attributes:
        split: whose images.
        count: how many of them.
        batch: images at once.
    """

    split: Literal["holdout", "test"]
    count: Count
    batch: Count


def main(words: Sequence[str]) -> None:
    """Composes, loads, goes over all steps, prints."""
    config, precision = settle_precision(resolved(compose("likelihood", words)))
    settings: LikelihoodSettings = own_settings(LikelihoodSettings, config)
    generator, run = generator_of(config)
    rule = generator.walk.rule
    if not generator.objective.tokenizer.bounded:
        raise ConfigError("run", config["run"], "is of latents; a likelihood of images needs tokenizer=identity")
    if not isinstance(rule, Ancestral):
        raise ConfigError("sampler", type(rule).__name__, "has no variance; use ddpm, ddpm_large or learned")
    session = session_of(run, config)
    folder = result_folder(config, "likelihood")
    with session.running(folder):
        announce(precision)
        images = spread(getattr(session.splits(), settings.split), settings.count)
        batches = in_order(images, settings.batch, session.world.device, 0, session.stop.poll)
        passes = -(-len(images) // settings.batch) * (len(generator.walk.stages) - 1)
        progress = Progress(session.progress, passes, title="bounding")
        generator.on_step = progress.advance
        found = [bound_of(generator, rule, batch) for batch in batches]
        progress.close()
        total = torch.cat([bound.total for bound in found])
        figures = {
            "bits/dim": float(total.mean()),
            **({"standard error": float(total.std() / len(total) ** 0.5)} if len(total) > 1 else {}),
            "prior": float(torch.cat([bound.prior for bound in found]).mean()),
            "steps": float(torch.cat([bound.steps[:-1].sum(0) for bound in found]).mean()),
            "last": float(torch.cat([bound.steps[-1] for bound in found]).mean()),
        }
        known = {**described(config, run), "split": settings.split, "images": len(images)}
        write_json(folder.path / "likelihood.json", {**known, "figures": figures})
        print(f"{len(images)} {settings.split} images: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        folder.set_status("done", len(images))


def bound_of(generator: Generator, rule: Ancestral, batch: Batch) -> Bound:
    """The bound of each image of a batch."""
    x0, cond = generator.objective.task(batch)
    told, draws = generator.prepared(cond), generator.draws(batch.index.tolist())
    predict = lambda x, stage: generator.predict(x, stage, told)  # noqa: E731
    return nll_bound(predict, rule, x0, generator.walk.stages, draws, clip=generator.walk.clip)


if __name__ == "__main__":
    run_tool(main)

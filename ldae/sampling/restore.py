"""What a trained denoiser does to pictures: restores, enlarges, segments, edits. Each is columns of a strip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond
from ldae.diffusion.editing import edited, invert, slerp
from ldae.diffusion.samplers import DDIM, Cold, Degrade, Direct
from ldae.diffusion.trajectory import nearest_stage
from ldae.metrics.image_quality import consistency, rmse
from ldae.metrics.segmentation import boundary_f, dice, iou, vote
from ldae.objectives.base import full_precision
from ldae.objectives.panels import fidelity
from ldae.sampling.generate import Generator, Watch
from ldae.tasks.super_resolution import SuperResolution, lower, upper

Columns = Mapping[str, Tensor]  # name -> (B, 1 or 3, H, W) in [0, 1]


class Restoration(ABC):
    """Pictures -> columns to look at and to measure.

    Args:
        generator: a trained denoiser with its trajectory.

    Attributes:
        truth: the column that the others are measured against.
        measured: columns that are measured.
        degrades: whether the corruption is applied to the pictures.
    """

    truth: str
    measured: Sequence[str]
    degrades = False

    def __init__(self, generator: Generator):
        self.check(generator)
        self.generator = generator

    @classmethod
    def check(cls, generator: Generator) -> None:
        """Refuse a sampler that cannot work here.

        Raises:
            ConfigError: it degrades its predictions as the input was degraded, and nothing degrades the input.
        """
        rule = generator.sampler.rule
        if isinstance(rule, Cold) and not cls.degrades:
            message = f"undoes a degradation, and how={cls.__name__.lower()} degrades nothing; use sampler=ddpm or ddim"
            raise ConfigError("sampler", type(rule).__name__, message)

    @abstractmethod
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        """The columns of a batch, left to right."""

    @property
    def passes(self) -> int:
        """How often the network is called for a batch."""
        return self.generator.passes()

    def figures(self, columns: Columns) -> dict[str, dict[str, float]]:
        """What is measured of each of `measured` against `truth`: {column: {figure: value}}."""
        truth = columns[self.truth]
        return {name: self._against(columns[name], truth, columns) for name in self.measured}

    def _against(self, answers: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        return {**fidelity(answers, truth), "rmse": rmse(answers, truth)}

    def _noise(self, batch: Batch) -> BatchGenerator:
        return self.generator.rng(batch.index.tolist())


class Undo(Restoration):
    """Cold Diffusion's restoration: input | degraded | direct | sampled (Sec. 4, arXiv 2208.09392)."""

    truth, measured = "input", ("degraded", "direct", "sampled")
    degrades = True

    @property
    def passes(self) -> int:
        return self.generator.passes(Direct()) + self.generator.passes()

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        g, rng = self.generator, self._noise(batch)
        with full_precision(batch.images):
            x0, _ = g.objective.task(batch)
            z0 = g.objective.tokenizer.encode(x0)
            corruption = g.objective.corruption
            state = corruption.draw(z0, rng)
            degrade, z = Degrade(corruption, state), corruption.observed(z0, g.sampler.stages[0].level(z0), state)
        direct = g.sample(z, rng, rule=Direct())
        sampled = g.sample(z, rng, rule=g.sampler.rule.bound(degrade), watch=watch)
        return {"input": batch.images, "degraded": g.image(z), "direct": g.image(direct), "sampled": g.image(sampled)}


class Enlarge(Restoration):
    """Super-resolution: low | bicubic | sampled | original (Sec. 2, arXiv 2104.07636)."""

    truth, measured = "original", ("bicubic", "sampled")

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        g, rng = self.generator, self._noise(batch)
        _, cond = g.objective.task(batch)
        assert cond.image is not None
        size = batch.images.shape[-1]
        low = (cond.image + 1) / 2
        sampled = g.image(g.sample(g.noise(rng, len(batch)), rng, cond, watch=watch))
        return {
            "low": F.interpolate(low, size=(size, size), mode="nearest-exact").clamp(0, 1),
            "bicubic": upper(low, size).clamp(0, 1),
            "sampled": sampled,
            "original": batch.images,
        }

    def _against(self, answers: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        task = self.generator.objective.task
        assert isinstance(task, SuperResolution)
        low = lower(truth, task.factor)
        return {
            **super()._against(answers, truth, columns),
            "consistency": consistency(low, lower(answers, task.factor)),
        }


class Invert(Restoration):
    """To the noise that DDIM makes a picture of, and back: original | noise | again (Sec. 5.4, arXiv 2010.02502)."""

    truth, measured = "original", ("again",)

    @property
    def passes(self) -> int:
        return 2 * self.generator.passes(DDIM())

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        g, rng = self.generator, self._noise(batch)
        z, message = noise_of(g, batch)
        again = g.sample(z, rng, message, rule=DDIM(), watch=watch)
        return {"original": batch.images, "noise": g.image(z), "again": g.image(again)}

    def _against(self, answers: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        return {**super()._against(answers, truth, columns), "mse": float(((answers - truth) ** 2).mean())}


class Interpolate(Restoration):
    """Between each picture and the next, on the sphere of their noise (Sec. 5.3, arXiv 2010.02502).

    The noise is that which DDIM makes the pictures of; the network is told what it is told of the first. Nothing is
    measured: no truth lies between two pictures.
    """

    truth, measured = "first", ()
    SHARES = (0.2, 0.4, 0.6, 0.8)

    @property
    def passes(self) -> int:
        return (1 + len(self.SHARES)) * self.generator.passes(DDIM())

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        g, rng = self.generator, self._noise(batch)
        z, message = noise_of(g, batch)
        other = z.roll(-1, 0)  # the last one's next is the first
        between = {
            f"{share:g}": g.image(g.sample(slerp(z, other, share), rng, message, rule=DDIM(), watch=watch))
            for share in self.SHARES
        }
        return {"first": batch.images, **between, "second": batch.images.roll(-1, 0)}


def noise_of(g: Generator, batch: Batch) -> tuple[Tensor, Cond | None]:
    """The noise (B, d, h, w) that DDIM makes the pictures of a batch of, and what the network is told of them."""
    x0, cond = g.objective.task(batch)
    message = g.prepared(cond)
    with full_precision(batch.images):
        z0 = g.objective.tokenizer.encode(x0)
    return invert(lambda x, stage: g.predict(x, stage, message), z0, g.sampler.stages), message


class Segment(Restoration):
    """Figure and ground: image | truth | mean of the runs | their vote (Sec. 3, arXiv 2112.00390).

    Args:
        generator: a trained denoiser of masks.
        runs: K, masks drawn for each image and averaged before rounding.
    """

    truth, measured = "truth", ("vote",)

    def __init__(self, generator: Generator, runs: int = 9):
        super().__init__(generator)
        self.runs = runs

    @property
    def passes(self) -> int:
        return self.runs * self.generator.passes()

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        g, rng = self.generator, self._noise(batch)
        cond = g.prepared(Cond(image=2 * batch.images - 1))  # the image is encoded once for all runs
        masks = [
            g.image(g.sample(g.noise(rng, len(batch)), rng, cond, watch=watch if not k else None))
            for k in range(self.runs)
        ]
        mean = torch.stack(masks).mean(0)  # (B, 1, H, W)
        truth = {} if batch.masks is None else {"truth": batch.masks}
        return {"image": batch.images, **truth, "mean of runs": mean, "vote": vote(torch.stack(masks))}

    def _against(self, answers: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        scores = {"IoU": iou, "Dice": dice, "boundary F": boundary_f}
        return {name: float(score(answers, truth).mean()) for name, score in scores.items()}


@dataclass(frozen=True)
class Guide:
    """What an edit starts from.

    Attributes:
        images: (B, 3, H, W) in [0, 1]: strokes, or a picture with something pasted in.
        keep: (B, 1, H, W), 1 where the original's pixels stay, or None: all may change.
    """

    images: Tensor
    keep: Tensor | None = None


class Edit(Restoration):
    """SDEdit: original | guide | an edit for each t0 (Alg. 1 and 2, arXiv 2108.01073).

    Args:
        generator: any trained denoiser of images.
        guided: a batch -> its guides.
        t0: shares of the schedule in [0, 1] that the guide is noised to; 0 gives the guide back.
        repeats: K, each from the last one's result.
    """

    truth = "guide"

    def __init__(self, generator: Generator, guided: Callable[[Batch], Guide], t0: Sequence[float], repeats: int = 1):
        super().__init__(generator)
        self.guided, self.t0, self.repeats = guided, t0, repeats
        self.measured = [f"t0={value:g}" for value in t0]

    @property
    def passes(self) -> int:
        return self.repeats * sum(self.generator.passes(first=self._first(t0)) for t0 in self.t0)

    def _first(self, t0: float) -> int:
        """Return the stage that the guide is noised to."""
        return nearest_stage(self.generator.sampler.stages, t0, self.generator.objective.schedule.T)

    @torch.no_grad()
    def __call__(self, batch: Batch, watch: Watch | None = None) -> Columns:
        guide, last = self.guided(batch), len(self.t0) - 1
        edits = {
            name: self._edited(batch, guide, t0, watch if i == last else None)
            for i, (name, t0) in enumerate(zip(self.measured, self.t0, strict=True))
        }
        return {"original": batch.images, "guide": guide.images, **edits}

    def _edited(self, batch: Batch, guide: Guide, t0: float, watch: Watch | None) -> Tensor:
        g, rng = self.generator, self._noise(batch)
        first = self._first(t0)
        with full_precision(batch.images):
            z = g.objective.tokenizer.encode(2 * guide.images - 1)
        keep = None if guide.keep is None else F.adaptive_avg_pool2d(guide.keep, (z.shape[2], z.shape[3])).floor()
        z = edited(
            lambda x, stage: g.predict(x, stage, None),
            g.sampler.rule,
            z,
            g.sampler.stages[first:],
            rng,
            keep=keep,
            repeats=self.repeats,
            clip=g.sampler.clip,
            watch=watch,
        )
        return g.image(z)

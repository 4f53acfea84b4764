"""Restoration, super-resolution, segmentation and editing with a trained denoiser, as columns of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond
from ldae.diffusion.editing import edit, invert, slerp
from ldae.diffusion.samplers import DDIM, Cold, Degradation, Direct
from ldae.diffusion.trajectory import nearest_step
from ldae.metrics.image_quality import consistency, rmse
from ldae.metrics.segmentation import boundary_f, class_iou, dice, iou, uncertainty, vote
from ldae.objectives.base import full_precision
from ldae.objectives.panels import fidelity
from ldae.sampling.generate import Generator, StepCallback
from ldae.tasks.super_resolution import SuperResolution, downsample, upsample

Columns = Mapping[str, Tensor]  # name -> (B, C, H, W) in [0, 1]; C is 1 or 3, or K for masks of K classes


class Restoration(ABC):
    """Map from a batch of images to columns of pictures, with their metrics.

    Args:
        generator: a trained denoiser with its trajectory.

    Attributes:
        truth: name of the reference column.
        measured: names of the columns that are measured.
        degrades: the corruption is applied to the images.
    """

    truth: str
    measured: Sequence[str]
    degrades = False

    def __init__(self, generator: Generator):
        self.check(generator)
        self.generator = generator

    @classmethod
    def check(cls, generator: Generator) -> None:
        """Check that the sampler is applicable.

        Raises:
            ConfigError: the sampler inverts a degradation, and the input is not degraded.
        """
        rule = generator.sampler.rule
        if isinstance(rule, Cold) and not cls.degrades:
            message = f"undoes a degradation, and how={cls.__name__.lower()} degrades nothing; use sampler=ddpm or ddim"
            raise ConfigError("sampler", type(rule).__name__, message)

    @abstractmethod
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        """Return the columns of a batch, left to right."""

    @property
    def passes(self) -> int:
        """Return the number of passes through the network per batch."""
        return self.generator.passes()

    def head(self, column: str) -> str:
        """Return the head of a column in a picture: its name, and the noise level where the column has one."""
        return column

    @property
    def compared(self) -> Sequence[str]:
        """Return the names of the columns that are compared with other images as sets."""
        return self.measured

    def figures(self, columns: Columns) -> dict[str, dict[str, float]]:
        """Measure each of `measured` against `truth`: {column: {metric: value}}."""
        truth = columns[self.truth]
        return {name: self._measure(columns[name], truth, columns) for name in self.measured}

    def _measure(self, predicted: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        return {**fidelity(predicted, truth), "rmse": rmse(predicted, truth)}

    def _rng(self, batch: Batch) -> BatchGenerator:
        return self.generator.rng(batch.index.tolist())


class Undo(Restoration):
    """Cold Diffusion's restoration: input | degraded | direct | sampled (Sec. 4, arXiv 2208.09392)."""

    truth, measured = "input", ("degraded", "direct", "sampled")
    degrades = True

    @property
    def passes(self) -> int:
        """Return the number of passes per batch: the direct restoration and the sampled one."""
        return self.generator.passes(Direct()) + self.generator.passes()

    def head(self, column: str) -> str:
        """Return the head of a column; that of the degraded images names their step."""
        return f"degraded t={self.generator.sampler.trajectory[0].t}" if column == "degraded" else column

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        with full_precision(batch.images):
            x0, _ = g.objective.task(batch)
            z0 = g.objective.tokenizer.encode(x0)
            corruption = g.objective.corruption
            state = corruption.draw(z0, rng)
            degrade = Degradation(corruption, state)
            z = corruption.corrupt(z0, g.sampler.trajectory[0].level(z0), state)
        direct = g.sample(z, rng, rule=Direct())
        sampled = g.sample(z, rng, rule=g.sampler.rule.bind(degrade), callback=callback)
        return {
            "input": batch.images,
            "degraded": g.to_image(z),
            "direct": g.to_image(direct),
            "sampled": g.to_image(sampled),
        }


class Enlarge(Restoration):
    """Super-resolution: low | bicubic | sampled | original (Sec. 2, arXiv 2104.07636)."""

    truth, measured = "original", ("bicubic", "sampled")

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        _, cond = g.objective.task(batch)
        assert cond.image is not None
        size = batch.images.shape[-1]
        low = (cond.image + 1) / 2
        sampled = g.to_image(g.sample(g.initial_noise(rng, len(batch)), rng, cond, callback=callback))
        return {
            "low": F.interpolate(low, size=(size, size), mode="nearest-exact").clamp(0, 1),
            "bicubic": upsample(low, size).clamp(0, 1),
            "sampled": sampled,
            "original": batch.images,
        }

    def _measure(self, predicted: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        task = self.generator.objective.task
        assert isinstance(task, SuperResolution)
        low = downsample(truth, task.factor)
        return {
            **super()._measure(predicted, truth, columns),
            "consistency": consistency(low, downsample(predicted, task.factor)),
        }


class Invert(Restoration):
    """DDIM inversion and reconstruction: original | noise | again (Sec. 5.4, arXiv 2010.02502)."""

    truth, measured = "original", ("again",)

    @property
    def passes(self) -> int:
        """Return the number of passes per batch: to the noise and back."""
        return 2 * self.generator.passes(DDIM())

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        z, cond = invert_batch(g, batch)
        again = g.sample(z, rng, cond, rule=DDIM(), callback=callback)
        return {"original": batch.images, "noise": g.to_image(z), "again": g.to_image(again)}

    def _measure(self, predicted: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        return {**super()._measure(predicted, truth, columns), "mse": float(((predicted - truth) ** 2).mean())}


class Interpolate(Restoration):
    """Spherical interpolation between the inverted noise of each image and the next (Sec. 5.3, arXiv 2010.02502).

    The condition is that of the first image. Nothing is measured, for lack of a reference.
    """

    truth, measured = "first", ()
    WEIGHTS = (0.2, 0.4, 0.6, 0.8)

    @property
    def passes(self) -> int:
        """Return the number of passes per batch: to the noise, and back for each weight."""
        return (1 + len(self.WEIGHTS)) * self.generator.passes(DDIM())

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        z, cond = invert_batch(g, batch)
        other = z.roll(-1, 0)  # cyclic
        between = {
            f"{lam:g}": g.to_image(g.sample(slerp(z, other, lam), rng, cond, rule=DDIM(), callback=callback))
            for lam in self.WEIGHTS
        }
        return {"first": batch.images, **between, "second": batch.images.roll(-1, 0)}


def invert_batch(g: Generator, batch: Batch) -> tuple[Tensor, Cond | None]:
    """Return the noise (B, d, h, w) of a batch by DDIM inversion, and the condition."""
    x0, image_cond = g.objective.task(batch)
    cond = g.precompute(image_cond)
    with full_precision(batch.images):
        z0 = g.objective.tokenizer.encode(x0)
    return invert(lambda x, step: g.predict(x, step, cond), z0, g.sampler.trajectory), cond


class Segment(Restoration):
    """Segmentation: image | truth | mean of the runs | uncertainty | their vote (Sec. 3, arXiv 2112.00390).

    Masks of a foreground have one channel. Masks of K classes are one-hot, and the vote is the class of the largest
    mean.

    Args:
        generator: a trained denoiser of masks.
        runs: K, masks sampled for each image and averaged before rounding.
    """

    truth, measured = "truth", ("vote",)

    def __init__(self, generator: Generator, runs: int = 9):
        super().__init__(generator)
        self.runs = runs

    @property
    def passes(self) -> int:
        """Return the number of passes per batch, for all sampled masks."""
        return self.runs * self.generator.passes()

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        g, rng = self.generator, self._rng(batch)
        cond = g.precompute(Cond(image=2 * batch.images - 1))  # the image is encoded once for all runs
        masks = [
            g.to_image(g.sample(g.initial_noise(rng, len(batch)), rng, cond, callback=callback if not k else None))
            for k in range(self.runs)
        ]
        runs = torch.stack(masks)  # (runs, B, K, H, W)
        truth = {} if batch.masks is None else {"truth": batch.masks}
        votes = {"mean of runs": runs.mean(0), "uncertainty": uncertainty(runs), "vote": vote(runs)}
        return {"image": batch.images, **truth, **votes}

    def _measure(self, predicted: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        if truth.shape[1] > 1:
            of_class = class_iou(predicted, truth)
            accuracy = (predicted * truth).sum() / truth.sum()  # of the pixels that have a class
            each = {f"IoU {k}": float(value) for k, value in enumerate(of_class)}
            return {"mIoU": float(of_class.nanmean()), "accuracy": float(accuracy), **each}
        scores = {"IoU": iou, "Dice": dice, "boundary F": boundary_f}
        return {name: float(score(predicted, truth).mean()) for name, score in scores.items()}


@dataclass(frozen=True)
class Guide:
    """Guide of an edit.

    Attributes:
        images: (B, 3, H, W) in [0, 1]: strokes, or an image with a pasted object.
        keep: (B, 1, H, W), 1 where the original's pixels are kept, to the bit; None: all may change.
    """

    images: Tensor
    keep: Tensor | None = None

    def kept_from(self, original: Tensor, others: Tensor) -> Tensor:
        """Return `others` with the pixels of the original where they are kept, (B, 3, H, W)."""
        return others if self.keep is None else torch.where(self.keep.bool(), original, others)


class Edit(Restoration):
    """SDEdit: original | guide | an edit for each t0 (Alg. 1 and 2, arXiv 2108.01073).

    Args:
        generator: any trained denoiser of images.
        guided: a batch -> its guides.
        t0: times in [0, 1] that the guide is noised to; 0 returns the guide.
        repeats: K; each starts from the previous result.
    """

    truth = "guide"

    def __init__(self, generator: Generator, guided: Callable[[Batch], Guide], t0: Sequence[float], repeats: int = 1):
        super().__init__(generator)
        self.guided, self.t0, self.repeats = guided, t0, repeats
        self.measured = [f"t0={value:g}" for value in t0]

    @property
    def compared(self) -> Sequence[str]:
        """Return the guide, at which the curve of realism over faithfulness starts, and the edits."""
        return [self.truth, *self.measured]

    @property
    def passes(self) -> int:
        """Return the number of passes per batch, for every t0 and repetition."""
        return self.repeats * sum(self.generator.passes(first=self._first(t0)) for t0 in self.t0)

    def _measure(self, predicted: Tensor, truth: Tensor, columns: Columns) -> dict[str, float]:
        distance = (predicted.double() - truth.double()).flatten(1).norm(dim=1)  # of each image, (B,)
        return {**super()._measure(predicted, truth, columns), "l2": float(distance.mean())}

    def _first(self, t0: float) -> int:
        """Return the index of the step that the guide is noised to."""
        return nearest_step(self.generator.sampler.trajectory, t0, self.generator.objective.schedule.T)

    @torch.no_grad()
    def __call__(self, batch: Batch, callback: StepCallback | None = None) -> Columns:
        guide, last = self.guided(batch), len(self.t0) - 1
        guide = replace(guide, images=guide.kept_from(batch.images, guide.images))
        edits = {
            name: self._edit(batch, guide, t0, callback if i == last else None)
            for i, (name, t0) in enumerate(zip(self.measured, self.t0, strict=True))
        }
        return {"original": batch.images, "guide": guide.images, **edits}

    def _edit(self, batch: Batch, guide: Guide, t0: float, callback: StepCallback | None) -> Tensor:
        g, rng = self.generator, self._rng(batch)
        first = self._first(t0)
        with full_precision(batch.images):
            z = g.objective.tokenizer.encode(2 * guide.images - 1)
        keep = None if guide.keep is None else F.adaptive_avg_pool2d(guide.keep, (z.shape[2], z.shape[3])).floor()
        z = edit(
            lambda x, step: g.predict(x, step, None),
            g.sampler.rule,
            z,
            g.sampler.trajectory[first:],
            rng,
            keep=keep,
            repeats=self.repeats,
            clip=g.sampler.clip,
            callback=callback,
        )
        return guide.kept_from(batch.images, g.to_image(z))  # a tokenizer alters kept pixels too

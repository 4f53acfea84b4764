"""Say how certain an accuracy and a difference are: bootstrap over images, ranks over data sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # of intervals
DRAWS = 10_000  # resamples of the images
SIGNIFICANCE = 0.05  # of tests on ranks
FEW = 100  # distinct values up to which a multinomial draw is faster than one of each image
AT_ONCE = 100  # resamples that are held in memory


@dataclass(frozen=True)
class Interval:
    """Mean over images with its bootstrap interval, in percent.

    Attributes:
        mean: mean over the images.
        low, high: percentiles of the means of resampled images (LEVEL of them lie between).
    """

    mean: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Return whether 0 lies in the interval, its ends included."""
        return self.low <= 0 <= self.high


def interval(correct: ArrayLike, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of per-image values and its percentile bootstrap interval (Efron 1979), in percent.

    Images are resampled with replacement. Where few values are distinct, equal ones are drawn together, from a
    multinomial distribution of their numbers, which is the same as resampling each image and costs little.

    Args:
        correct: (N,) values of the images: 0 or 1 for one classifier, means over seeds for several.
        level: fraction of the resampled means inside, in (0, 1).
        draws: number of resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: there is no image, or a number is not finite.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape} are no finite numbers of at least one image")
    distinct, counts = np.unique(values, return_counts=True)
    generator, count = np.random.default_rng(seed), len(values)
    if len(distinct) <= FEW:
        means = generator.multinomial(count, counts / count, size=draws) @ distinct / count
    else:
        some = [min(AT_ONCE, draws - first) for first in range(0, draws, AT_ONCE)]
        means = np.concatenate([values[generator.integers(count, size=(n, count))].mean(1) for n in some])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(100 * float(values.mean()), 100 * float(low), 100 * float(high))


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of `a - b` over the same images and its bootstrap interval, in percentage points.

    The images are resampled once for both, so that what is hard for both cancels.

    Args:
        a, b: (N,) values of the same images in the same order (see `interval`).
        level, draws, seed: as for `interval`.

    Raises:
        ValueError: the numbers of images differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"values of shapes {first.shape} and {second.shape} are not of the same images")
    return interval(first - second, level, draws, seed)


def ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of each encoder on each column, 1 for the highest score; ties share their mean rank.

    Args:
        scores: (encoders, columns), higher is better.

    Returns:
        (encoders, columns).
    """
    from scipy.stats import rankdata  # the module takes a second

    return np.asarray(rankdata(-np.asarray(scores, dtype=np.float64), axis=0), dtype=np.float64)


def critical_difference(encoders: int, columns: int, significance: float = SIGNIFICANCE) -> float:
    """Return the difference of mean ranks from which two encoders differ (Nemenyi's test; Sec. 3.2.2, Demsar 2006).

    q sqrt(k (k + 1) / 6 N), with q the quantile of the Studentized range of k means over sqrt(2).

    Args:
        encoders: number k of encoders, >= 2.
        columns: number N of data sets, >= 1.
        significance: probability of calling equal encoders different, in (0, 1).

    Raises:
        ValueError: there are fewer.
    """
    if encoders < 2 or columns < 1:
        raise ValueError(f"ranks of {encoders} encoders on {columns} data sets cannot differ; 2 and 1 are needed")
    from scipy.stats import studentized_range  # the module takes a second

    q = float(studentized_range.ppf(1 - significance, encoders, np.inf)) / math.sqrt(2)
    return q * math.sqrt(encoders * (encoders + 1) / (6 * columns))

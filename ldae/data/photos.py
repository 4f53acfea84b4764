"""Crops of the twelve photographs in scikit-learn and scikit-image: natural images without a download.

| photograph | source and licence, as those packages state them |
|---|---|
| china | danielbuechele, flickr.com/photos/danielbuechele/6061409035, CC BY 2.0 |
| flower | vultilion, flickr.com/photos/vultilion/6056698931, CC BY 2.0 |
| astronaut | NASA Great Images, flic.kr/p/r9qvLn, public domain |
| brick | cc0textures.com, Bricks25, CC0 |
| camera | Lav Varshney, CC0 |
| chelsea | Stefan van der Walt, CC0 |
| coffee | Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0 |
| grass | linolafett, deviantart.com, Grass-01, CC0 |
| gravel | cc0textures.com, Gravel04, CC0 |
| hubble_deep_field | NASA, hubblesite.org 2012/37, public domain |
| ihc | Center for Microscopy and Molecular Imaging, no known copyright restrictions |
| motorcycle_left | Middlebury stereo benchmark 2014, Scharstein et al., vision.middlebury.edu/stereo |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ldae.core.errors import ConfigError, DataError
from ldae.core.files import json_hash
from ldae.core.rng import seed_of, uniforms
from ldae.core.types import Count
from ldae.data.base import no_folds
from ldae.data.cache import Context, hash_pixels
from ldae.data.datasets import Dataset, Division
from ldae.data.decode import BadImage, read_rgb
from ldae.data.images import MemoryImages, Splits

SKLEARN, SKIMAGE = ("sklearn", "datasets/images"), ("skimage", "data")
DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}
PHOTOGRAPHS = {
    "china": (*SKLEARN, "china.jpg"),
    "flower": (*SKLEARN, "flower.jpg"),
    "astronaut": (*SKIMAGE, "astronaut.png"),
    "brick": (*SKIMAGE, "brick.png"),
    "camera": (*SKIMAGE, "camera.png"),
    "chelsea": (*SKIMAGE, "chelsea.png"),
    "coffee": (*SKIMAGE, "coffee.png"),
    "grass": (*SKIMAGE, "grass.png"),
    "gravel": (*SKIMAGE, "gravel.png"),
    "hubble_deep_field": (*SKIMAGE, "hubble_deep_field.jpg"),
    "ihc": (*SKIMAGE, "ihc.png"),
    "motorcycle_left": (*SKIMAGE, "motorcycle_left.png"),
}
COLUMNS = ("train", "held out", "train", "held out", "train")  # of each photograph, from left to right
MAX_SIZE = 50  # pixels: the narrowest photograph, 451 wide, has room for five columns and four gaps of this width
CONTRAST = 1.5  # deviations from the mean of a crop are scaled by a factor from 1 / CONTRAST to CONTRAST
BRIGHTNESS = 32  # grey levels: the mean of a crop becomes 127.5 plus or minus at most this


@dataclass(frozen=True)
class Box:
    """Rectangle of a photograph in pixels; `bottom` and `right` are exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class Photos(Dataset):
    """Grey square crops of twelve photographs, as RGB; the class is the photograph.

    Train, hold-out and test come from disjoint regions with gaps of `size` pixels between them (`split_regions`).
    Crops have the resolution of the photograph; their positions are uniform in their region. A random mean for each
    crop removes the brightness as a cue for the class; the contrast is random too.

    Args: as Dataset, and
        size: side of the crops in pixels, at most 50.
        division: `holdout` is the fraction of `crops` that comes from the hold-out's region instead of train's;
            `test` is not used; `split_seed` is the seed of positions, means and contrasts.
        crops: number of crops in train and hold-out together, rounded down to the same number for each photograph.
        test_crops: number of crops in the test split, rounded likewise.
    """

    def __init__(self, size: Count, division: Division, crops: Count = 6000, test_crops: Count = 1440):
        super().__init__(size, division)
        self.crops, self.test_crops = crops, test_crops

    def open(self, context: Context) -> Splits:
        """Cut the embedded photographs into crops, and divide them."""
        if self.division.fold is not None:
            raise no_folds(self.division.fold)
        if self.size > MAX_SIZE:
            raise ConfigError("size", self.size, f"must be at most {MAX_SIZE}: the narrowest photograph is 451 wide")
        counts = self._counts()
        pixels, names, labels, splits = [], [], [], []
        for label, name in enumerate(PHOTOGRAPHS):
            grey = load_photograph(name, context.max_pixels)
            for split, boxes in split_regions(grey.shape[0], grey.shape[1], self.size).items():
                seed = seed_of(self.division.split_seed, label, list(counts).index(split))
                crops, corners = _crops(grey, boxes, self.size, counts[split], seed)
                pixels.append(crops)
                names += [f"{name}/{split}-{i:04d}-x{x:03d}-y{y:03d}" for i, (y, x) in enumerate(corners)]
                labels += [label] * counts[split]
                splits += [split] * counts[split]
        grey_crops = torch.from_numpy(np.concatenate(pixels))  # (N, size, size)
        rgb = grey_crops[:, None].expand(-1, 3, -1, -1).contiguous()  # (N, 3, size, size)
        whole = MemoryImages.of(Path("photos"), rgb, names, np.array(labels, dtype=np.int64))
        train, holdout, test = (whole.subset(np.flatnonzero(np.array(splits) == split)) for split in counts)
        fingerprint = json_hash([hash_pixels(grey_crops.numpy()), names, self.division.identity()])
        return Splits(train, holdout, test, list(PHOTOGRAPHS), fingerprint)

    def _counts(self) -> dict[str, int]:
        """Return the number of crops of one photograph in each split.

        Raises:
            DataError: train or test would have none.
        """
        holdout = round(self.division.holdout * self.crops)
        sizes = {"train": self.crops - holdout, "holdout": holdout, "test": self.test_crops}
        counts = {split: size // len(PHOTOGRAPHS) for split, size in sizes.items()}
        for key, split in (("crops", "train"), ("test_crops", "test")):
            if not counts[split]:
                raise DataError(
                    f"data.{key}={getattr(self, key)} with data.holdout={self.division.holdout:g} leaves {split} "
                    f"fewer crops than there are photographs; give at least {len(PHOTOGRAPHS)} to each split"
                )
        return counts


def split_regions(height: int, width: int, gap: int) -> dict[str, Sequence[Box]]:
    """Return the rectangles of a photograph that belong to each split.

    There are five columns of equal width, a gap apart. The first, third and fifth are train's. The second is test's
    above and the hold-out's below, the fourth the reverse, with a gap between. So each split covers most of the
    photograph, and hold-out and test are equally far from train.

    Args:
        height, width: size of the photograph in pixels.
        gap: minimum distance of two splits in pixels.
    """
    column = (width - gap * (len(COLUMNS) - 1)) // len(COLUMNS)
    half = (height - gap) // 2
    boxes: dict[str, list[Box]] = {"train": [], "holdout": [], "test": []}
    for i, owner in enumerate(COLUMNS):
        left, right = i * (column + gap), i * (column + gap) + column
        if owner == "train":
            boxes["train"].append(Box(0, height, left, right))
            continue
        above, below = ("test", "holdout") if i == 1 else ("holdout", "test")
        boxes[above].append(Box(0, half, left, right))
        boxes[below].append(Box(half + gap, height, left, right))
    return dict(boxes)


def load_photograph(name: str, max_pixels: int = 100_000_000) -> np.ndarray:
    """Return a photograph in grey, (H, W) uint8 (ITU-R 601 luma).

    Args:
        name: a key of PHOTOGRAPHS.
        max_pixels: width x height above which the photograph is refused.

    Raises:
        DataError: the installed package does not contain the photograph, or it is unreadable.
    """
    package, folder, file = PHOTOGRAPHS[name]
    spec = find_spec(package)  # only its location: the import of these packages takes seconds
    if spec is None or spec.origin is None:
        raise DataError(f"data=photos needs {package}; pip install {DISTRIBUTIONS[package]}")
    path = Path(spec.origin).parent / folder / file
    try:
        return np.asarray(read_rgb(path, max_pixels).convert("L"))
    except BadImage as error:
        raise DataError(f"data=photos: {path} cannot be read ({error}); reinstall {DISTRIBUTIONS[package]}") from None


def _crops(
    grey: np.ndarray, boxes: Sequence[Box], size: int, count: int, seed: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return `count` crops, (count, size, size) uint8, from the boxes in turn, and their top left corners (y, x)."""
    if not count:
        return np.empty((0, size, size), np.uint8), []
    u = uniforms(seed, 0, torch.arange(count), 4).double().numpy()
    turns = [boxes[i % len(boxes)] for i in range(count)]
    y = [box.top + int(r * (box.bottom - box.top - size + 1)) for box, r in zip(turns, u[:, 0], strict=True)]
    x = [box.left + int(r * (box.right - box.left - size + 1)) for box, r in zip(turns, u[:, 1], strict=True)]
    corners = list(zip(y, x, strict=True))
    crops = np.stack([grey[top : top + size, left : left + size] for top, left in corners]).astype(np.float64)
    deviations = crops - crops.mean((1, 2), keepdims=True)
    contrast = CONTRAST ** (2 * u[:, 2, None, None] - 1)
    mean = 127.5 + BRIGHTNESS * (2 * u[:, 3, None, None] - 1)
    return np.clip(np.round(mean + contrast * deviations), 0, 255).astype(np.uint8), corners

"""Compose pictures with masks of several classes from photographs and handwritten digits, for `segdiff/classes_cpu`.

    python results/recipes/scenes.py CIFAR10 MNIST OUT

One or two digits, 1 to 4, in a random colour each on a photograph of CIFAR-10. The index of a pixel is its digit, and 0
on the photograph; a later digit covers an earlier one. Photographs and digits of train, val and test are disjoint.

Args:
    CIFAR10: a folder with train/CLASS/NAME.png and test/CLASS/NAME.png.
    MNIST: the folder that mnist.py writes.
    OUT: gets OUT/{train,val,test}/images/NUMBER.png and OUT/{train,val,test}/masks/NUMBER.png of 32 px.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCENES = {"train": 4000, "val": 200, "test": 200}
DIGITS = (1, 2, 3, 4)
SIDE = 32  # pixels of a scene
HEIGHTS = (16, 24)  # pixels of a digit's square, without the margin of MNIST
MARGIN = 4  # pixels around the digits of MNIST
INK = 0.5  # opacity from which a pixel belongs to its digit


def main(cifar10: Path, mnist: Path, out: Path, seed: int = 0) -> None:
    """Write the scenes and masks of all splits."""
    for number, (split, count) in enumerate(SCENES.items()):
        generator = np.random.default_rng((seed, number))
        photographs = chosen(cifar10, split, "*/*.png")
        digits = {digit: chosen(mnist, split, f"{digit}/*.png") for digit in DIGITS}
        for folder in ("images", "masks"):
            (out / split / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, mask = compose(photographs, digits, generator)
            Image.fromarray(image).save(out / split / "images" / f"{i:04d}.png")
            Image.fromarray(mask).save(out / split / "masks" / f"{i:04d}.png")


def chosen(root: Path, split: str, pattern: str) -> list[Path]:
    """Return the files of a split in the order of their names; every tenth of train/ is val."""
    if split == "test":
        return sorted((root / "test").glob(pattern))
    files = sorted((root / "train").glob(pattern))
    return [path for i, path in enumerate(files) if (i % 10 == 0) == (split == "val")]


def compose(
    photographs: list[Path], digits: dict[int, list[Path]], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene (32, 32, 3) uint8 and the indices (32, 32) uint8 of its pixels' classes."""
    photograph = photographs[generator.integers(len(photographs))]
    image = np.array(Image.open(photograph).convert("RGB"), dtype=np.float64)  # (H, W, 3)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for digit in generator.choice(DIGITS, size=generator.integers(1, 3), replace=False):
        files = digits[digit]
        height = int(generator.integers(*HEIGHTS, endpoint=True))
        drawn = Image.open(files[generator.integers(len(files))]).crop((MARGIN, MARGIN, 28 - MARGIN, 28 - MARGIN))
        ink = np.asarray(drawn.resize((height, height), Image.Resampling.BICUBIC)) / 255.0
        top, left = generator.integers(SIDE - height, size=2, endpoint=True)
        place = np.s_[top : top + height, left : left + height]
        image[place] += ink[..., None] * (generator.uniform(0, 255, 3) - image[place])
        mask[place][ink >= INK] = digit
    return np.rint(image).astype(np.uint8), mask


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

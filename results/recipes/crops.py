"""Write the third data set of results/recipes: 64-px crops of ImageNet pictures, a class each.

    python results/recipes/crops.py PICTURES OUT

Args:
    PICTURES: a folder of JPEG files; those of at least 200 pixels a side are used, their shorter side scaled to 288.
    OUT: gets OUT/train/CLASS and OUT/test/CLASS, 120 and 30 crops of each picture: train from the first 56 % of its
        longer side, test from the last 36 %, so that no pixel is in both. A crop's brightness, contrast and colour
        balance are random.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, SHORTER, SMALLEST = 64, 288, 200  # pixels
TRAIN, TEST = (0.0, 0.56, 120), (0.64, 1.0, 30)  # first and last place along the longer side; crops


def main(pictures: Path, out: Path) -> None:
    """Write the crops of every picture that is large enough."""
    rng = np.random.default_rng(0)
    for path in sorted(pictures.rglob("*.JPEG")):
        image = Image.open(path).convert("RGB")
        if min(image.size) < SMALLEST:
            continue
        scale = SHORTER / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).astype(np.float32)
        pixels = pixels.transpose(1, 0, 2) if image.height > image.width else pixels
        for split, (first, last, count) in (("train", TRAIN), ("test", TEST)):
            low, high = int(first * pixels.shape[1]), int(last * pixels.shape[1])
            folder = out / split / path.name.split("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                crop = varied(rng, pixels[:, low:high])
                crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")


def varied(rng: np.random.Generator, region: np.ndarray) -> Image.Image:
    """Return a square part of (H, W, 3), 64 to 96 pixels a side, its brightness, contrast and balance changed."""
    height, width = region.shape[:2]
    side = int(rng.integers(SIZE, min(97, width)))
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    crop = region[y : y + side, x : x + side]
    crop = (crop - crop.mean()) * rng.uniform(0.7, 1.3) + crop.mean() * rng.uniform(0.7, 1.3)
    crop = crop * rng.uniform(0.85, 1.15, 3)
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

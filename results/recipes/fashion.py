"""Write Fashion-MNIST, the fourth data set of results/recipes, as folders of PNG files.

    python results/recipes/fashion.py FILES OUT

Args:
    FILES: a folder with the four files of arXiv 1708.07747, train-images-idx3-ubyte.gz and the like, as torchvision
        downloads them and as Debian's package dataset-fashion-mnist installs them.
    OUT: gets OUT/train/CLASS/NUMBER.png and OUT/test/CLASS/NUMBER.png: 60,000 and 10,000 grey pictures of 28 px.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
HEADERS = {"images": 16, "labels": 8}  # bytes before the first value
SIDE = 28  # pixels


def main(files: Path, out: Path) -> None:
    """Write the pictures of both splits."""
    for name, split in (("train", "train"), ("t10k", "test")):
        images = read(files / f"{name}-images-idx3-ubyte.gz", HEADERS["images"]).reshape(-1, SIDE, SIDE)
        labels = read(files / f"{name}-labels-idx1-ubyte.gz", HEADERS["labels"])
        for label in CLASSES:
            (out / split / label).mkdir(parents=True, exist_ok=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(out / split / CLASSES[label] / f"{i:05d}.png")


def read(path: Path, header: int) -> np.ndarray:
    """Return the unsigned bytes of an IDX file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)[header:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

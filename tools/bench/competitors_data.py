"""Load images with l-DAE, torchvision and Pillow (timed by interleaved.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from competitors import Work
from PIL import Image
from torch import Tensor

from ldae.data.folder import list_images
from ldae.data.images import FileImages, MemoryImages, encode_names
from ldae.data.loader import Loader, bytes_in_order
from ldae.data.reading import file_batches
from ldae.data.transforms import Augment, PadCrop, RandomResizedCrop
from ldae.engine.runtime import keep_freed_memory
from ldae.engine.threads import AdaptiveThreads
from ldae.tokenizers.patch_linear import PatchPCA
from ldae.tokenizers.patch_moments import PatchMoments

WORKERS = 2
AT_A_TIME = 16  # batches of a piece of work: what workers make ahead must not fall into another's turn
AUGMENTS: dict[str, Augment] = {"pad_crop": PadCrop(4, 0.5), "random_resized_crop": RandomResizedCrop(0.2, 1.0, 0.5)}


def files_of(folder: str, least: int, size: int) -> FileImages:
    """Return the images below FOLDER/CLASS/, as often as it takes to be `least`."""
    listing = list_images(Path(folder))
    times = -(-least // len(listing.files))
    names = encode_names(list(listing.files) * times)
    return FileImages(listing.root, names, np.array(listing.labels * times), size)


def small(augment: str, batch: int) -> Work:
    """Load 50,000 images of 32 px, held as bytes."""
    pixels = torch.randint(256, (50000, 3, 32, 32), dtype=torch.uint8)
    images = MemoryImages.of(Path(), pixels, [str(i) for i in range(len(pixels))], np.zeros(len(pixels), np.int64))
    batches = Loader(images, AUGMENTS[augment], batch, 0, torch.device("cpu")).batches(0)
    return lambda: next(batches), batch


def small_torchvision(folder: str, batch: int) -> Work:
    """Load with torchvision's ImageFolder, bicubic random resized crops, torch's DataLoader with two workers."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    ways = [transforms.RandomResizedCrop(32, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)]
    chain = transforms.Compose([*ways, transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    loader: Any = DataLoader(datasets.ImageFolder(folder, chain), batch, shuffle=True, num_workers=WORKERS)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return lambda: next(batches), batch


def large(folder: str, batch: int, size: int) -> Work:
    """Load files with l-DAE: decoded, cut and resized by two workers; from the start to the end of the workers."""
    keep_freed_memory()  # as pretraining does
    images = files_of(folder, AT_A_TIME * batch, size)
    keys = [[(0, i) for i in range(k * batch, (k + 1) * batch)] for k in range(AT_A_TIME)]
    threads = AdaptiveThreads()

    def some() -> None:
        augment, device = AUGMENTS["random_resized_crop"], torch.device("cpu")
        for pixels, _, _ in file_batches(images, augment, 0, keys, batch, WORKERS, device):
            threads.update()  # as in pretraining
            pixels.float().div_(255)

    return some, AT_A_TIME * batch


class Decoding(AbstractContextManager["Decoding"]):
    """Call that decodes the next batch of files with Pillow in two processes, and drops the pixels.

    Leaving its context ends the processes.
    """

    def __init__(self, paths: Sequence[Path], batch: int):
        self.turns = itertools.cycle([paths[k : k + batch] for k in range(0, len(paths) - batch + 1, batch)])
        self.pool, self.chunk = ProcessPoolExecutor(WORKERS), max(1, batch // (4 * WORKERS))

    def __call__(self) -> int:
        """Return the number of pixels."""
        return sum(self.pool.map(pixels_in, next(self.turns), chunksize=self.chunk))

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.pool.shutdown()


def decoded(folder: str, batch: int) -> tuple[Decoding, float]:
    """Decode files with Pillow in two processes, and drop the pixels."""
    images = files_of(folder, batch, 0)
    return Decoding([images.root / images.name(i) for i in range(len(images))], batch), batch


def pixels_in(path: Path) -> int:
    """Decode a file, and return its number of pixels."""
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    return pixels.width * pixels.height


def in_turn(folder: str, batch: int, size: int, use: Callable[[Tensor], object]) -> Work:
    """Return the centre squares of files, (B, 3, size, size) uint8, as a PCA is fitted on them."""
    keep_freed_memory()  # as pretraining does
    images, threads = files_of(folder, AT_A_TIME * batch, size), AdaptiveThreads()

    def some() -> None:
        for pixels in bytes_in_order(images, batch, torch.device("cpu"), WORKERS):
            threads.update()  # as in the course of a longer fit
            use(pixels)

    return some, len(images)


def read_alone(folder: str, batch: int, size: int) -> Work:
    """Read the images of a PCA fit, without the fit."""
    return in_turn(folder, batch, size, lambda x: None)


def read_and_summed(folder: str, batch: int, size: int, patch: int) -> Work:
    """Return the same images, their patches' moments summed: PCA but for the last step."""
    tokenizer = PatchPCA((3, size, size), patch, 16)
    moments = PatchMoments(tokenizer.D, tokenizer.planar_rows)
    return in_turn(folder, batch, size, moments.add)


def read_and_summed_sklearn(folder: str, batch: int, size: int, patch: int) -> Work:
    """Return the same images through scikit-learn's IncrementalPCA."""
    from sklearn.decomposition import IncrementalPCA

    tokenizer, model = PatchPCA((3, size, size), patch, 16), IncrementalPCA()
    return in_turn(folder, batch, size, lambda k: model.partial_fit(tokenizer.rows(2 * (k / 255) - 1).numpy()))

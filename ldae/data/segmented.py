"""Images with figure-ground masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldae.core.errors import DataError
from ldae.core.types import Count
from ldae.data.cache import Bad, Context, Squares, in_memory
from ldae.data.datasets import Dataset, Division, existing_root, unread_folders, unread_notes
from ldae.data.decode import BadImage, Bands, centre_square, read_mask, read_rgb
from ldae.data.folder import Listing, list_pairs
from ldae.data.images import ImageSet, Splits
from ldae.data.layout import SplitNames
from ldae.data.walk import contents

LAYOUT = "train/images/NAME.jpg and train/masks/NAME.png"


class FigureSquares(Squares):
    """Images and their masks as centred squares: red, green, blue, and 255 where the figure is.

    The mask is cut as its image is; the image is resized bicubically, the mask by nearest neighbours.

    Args:
        masks: file of each image of the listing.
    """

    kind, channels = "figures", 4

    def __init__(self, masks: Sequence[Path]):
        self.masks = masks

    def sources(self, listing: Listing) -> Iterable[Any]:
        return zip(super().sources(listing), self.masks, strict=True)

    @staticmethod
    def square(source: Any, size: int, max_pixels: int, bands: Bands) -> np.ndarray:
        """(4, size, size) uint8 from the paths of an image and its mask.

        Raises:
            BadImage: one of them cannot be read.
            DataError: they are of different sizes.
        """
        path, mask_path = source
        image, mask = read_rgb(path, max_pixels, bands), _read_mask(mask_path, max_pixels)
        if image.size != mask.size:
            (w, h), (v, u) = image.size, mask.size
            raise DataError(f"{mask_path} is {v} x {u}, its image {path.name} is {w} x {h}; a mask is as large")
        colours = np.asarray(centre_square(image, size)).transpose(2, 0, 1)  # (3, H, W)
        figure = np.asarray(centre_square(mask, size, Image.Resampling.NEAREST))[None]  # (1, H, W)
        return np.concatenate([colours, figure])


def _read_mask(path: Path, max_pixels: int) -> Image.Image:
    try:
        return read_mask(path, max_pixels)
    except BadImage as error:
        raise BadImage(f"its mask {path.name}: {error}") from None


class Segmented(Dataset):
    """Images and figure-ground masks: root/{train,val,test}/images/NAME.jpg and root/{train,val,test}/masks/NAME.png.

    Of a mask 128 and more is figure. The names of splits are as in ImageFolder; without a test split a share of train/
    is set aside. Held in memory; one class.

    Args: as Dataset, and
        root: the folder.
    """

    classifies = False  # of its pixels, not of its images

    def __init__(self, size: Count, division: Division, root: str | None = None):
        super().__init__(size, division)
        self.root = root

    def open(self, context: Context) -> Splits:
        root = existing_root(self.root, LAYOUT)
        there = contents(root)
        names = {"train": "train", **SplitNames().among(there.folders, str(root))}
        listings = {key: list_pairs(root / name, context.poll) for key, name in names.items()}
        if "holdout" in names:  # one set with train: names that say which
            listings |= {key: listings[key].below(root) for key in ("train", "holdout")}
        called = {key: f"{name}/" for key, name in names.items()}
        notes = unread_notes(root, there, unread_folders(root, there, names))
        return self._opened(listings, partial(self._read, context=context), called, notes)

    def _read(self, listing: Listing, context: Context) -> tuple[ImageSet, Bad, str]:
        images, bad, mark = in_memory(listing, self.size, context, FigureSquares(listing.masks))
        if not images.pixels[:, 3].any():
            raise DataError(f"no mask below {listing.root} has a figure: 128 and more is figure, less is ground")
        return images, bad, mark

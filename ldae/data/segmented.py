"""Images with segmentation masks: of foreground and background, or of several classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from ldae.core.errors import DataError
from ldae.core.types import Count, Range
from ldae.data.cache import Bad, Context, PixelReader, load_images
from ldae.data.datasets import Dataset, Division, describe_unread_images, find_unread_folders, resolve_root
from ldae.data.decode import BadImage, Bands, centre_crop, read_class_indices, read_mask, read_rgb
from ldae.data.folder import Listing, list_image_mask_pairs
from ldae.data.images import ImageSet, Splits
from ldae.data.scan import list_folder
from ldae.data.split_names import SplitNames

LAYOUT = "train/images/NAME.jpg and train/masks/NAME.png"
VOID = 255  # index of pixels without a class, in masks of several classes
Classes = Annotated[int, Range(1, VOID)]


class MaskedPixelReader(PixelReader):
    """Reader of images and masks as centre crops: red, green, blue, and a channel of 0 or 255 for each class.

    Without several classes there is one channel, of the foreground. Image and mask have the same crop; the image is
    resized bicubically, the mask by nearest neighbours.

    Args:
        masks: path of the mask of each image in the listing.
        classes: K classes of pixels; 1 for foreground and background.
    """

    def __init__(self, masks: Sequence[Path], classes: int = 1):
        self.masks, self.classes = masks, classes
        self.content = "figures" if classes == 1 else f"masks of {classes} classes"
        self.channels = 3 + classes

    def sources(self, listing: Listing) -> Iterable[Any]:
        """Return the paths of image and mask, and the number of classes, for each file of a listing."""
        return zip(super().sources(listing), self.masks, [self.classes] * len(self.masks), strict=True)

    @staticmethod
    def read(source: Any, size: int, max_pixels: int, bands: Bands) -> np.ndarray:
        """Return (3 + K, size, size) uint8 from the paths of an image and its mask, and K.

        Raises:
            BadImage: one of them is unreadable.
            DataError: they have different sizes, or a pixel is of no class of K.
        """
        path, mask_path, classes = source
        image = read_rgb(path, max_pixels, bands)
        try:
            mask = read_mask(mask_path, max_pixels) if classes == 1 else read_class_indices(mask_path, max_pixels)
        except BadImage as error:
            raise BadImage(f"its mask {mask_path.name}: {error}") from None
        if image.size != mask.size:
            (w, h), (v, u) = image.size, mask.size
            raise DataError(f"{mask_path} is {v} x {u}, its image {path.name} is {w} x {h}; give masks of equal size")
        rgb = np.asarray(centre_crop(image, size)).transpose(2, 0, 1)  # (3, H, W)
        cropped = np.asarray(centre_crop(mask, size, Image.Resampling.NEAREST))  # (H, W)
        if classes == 1:
            return np.concatenate([rgb, cropped[None]])
        if (others := np.setdiff1d(np.asarray(mask), [*range(classes), VOID])).size:
            message = f"has the class {others[0]}; data.classes={classes} are 0 to {classes - 1}, and {VOID} for none"
            raise DataError(f"{mask_path} {message}")
        return np.concatenate([rgb, 255 * (cropped == np.arange(classes)[:, None, None]).astype(np.uint8)])


class Segmented(Dataset):
    """Images root/{train,val,test}/images/NAME.jpg with masks root/{train,val,test}/masks/NAME.png.

    Mask values of 128 and more are foreground. With several classes, masks hold the index of each pixel's class, or 255
    for none. The names of splits are as in ImageFolder; without a test split, a
    fraction of train/ is the test split. All images are in memory and have one class.

    Args: as Dataset, and
        root: folder of the data set.
        classes: K classes of pixels; 1 for foreground and background.
    """

    classifies = False  # the labels are those of pixels

    def __init__(self, size: Count, division: Division, root: str | None = None, classes: Classes = 1):
        super().__init__(size, division)
        self.root, self.classes = root, classes

    def open(self, context: Context) -> Splits:
        """List and read the images and masks of the folder, and divide them."""
        root = resolve_root(self.root, LAYOUT)
        contents = list_folder(root)
        names = {"train": "train", **SplitNames().resolve(contents.folders, str(root))}
        listings = {key: list_image_mask_pairs(root / name, context.poll) for key, name in names.items()}
        if "holdout" in names:  # read as one set with train: unique names
            listings |= {key: listings[key].relative_to(root) for key in ("train", "holdout")}
        titles = {key: f"{name}/" for key, name in names.items()}
        notes = describe_unread_images(root, contents, find_unread_folders(root, contents, names))
        return self._open_listings(listings, partial(self._read, context=context), titles, notes)

    def _read(self, listing: Listing, context: Context) -> tuple[ImageSet, Bad, str]:
        images, bad, digest = load_images(listing, self.size, context, MaskedPixelReader(listing.masks, self.classes))
        if not images.pixels[:, 3:].any():
            meaning = "values of 128 and more are foreground" if self.classes == 1 else f"{VOID} is of no class"
            raise DataError(f"no mask below {listing.root} has foreground: {meaning}")
        return images, bad, digest
